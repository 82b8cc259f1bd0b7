#include "pipeline/run.h"

#include "cli/torch/work.h"
#include "nn/device.h"
#include "nn/system.h"
#include "report/run_view.h"

namespace elastify::cli {

Report work(const Invocation& call, const RunCommand& command) {
  const pipeline::RunConfig config = pipeline::load_config(command.config, command.overrides);
  nn::set_threads(static_cast<int>(config.threads));
  nn::warn_if_blas_is_slow();
  Report report;
  report.json = pipeline::run(config, call.force);
  report.text = report::run_table(report.json) +
                fmt::format("\n{0}/artifact, {0}/report.json, {0}/report.svg\n", config.output);
  return report;
}

}  // namespace elastify::cli
