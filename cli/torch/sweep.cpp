#include "pipeline/sweep.h"

#include "cli/torch/work.h"
#include "nn/device.h"
#include "nn/system.h"
#include "report/sweep_view.h"

namespace elastify::cli {

Report work(const Invocation& call, const SweepCommand& command) {
  const pipeline::SweepConfig config = pipeline::load_sweep(command.config, command.overrides);
  nn::set_threads(static_cast<int>(config.base.threads));
  nn::warn_if_blas_is_slow();
  Report report;
  report.json = pipeline::sweep(config, call.force);
  report.text = report::sweep_table(report.json) +
                fmt::format("\n{0}/sweep.csv, {0}/sweep.json, {0}/sweep.svg\n", config.base.output);
  return report;
}

}  // namespace elastify::cli
