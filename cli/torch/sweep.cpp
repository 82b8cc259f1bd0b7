#include "pipeline/sweep.h"
#include "cli/commands.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/sweep_report.h"

namespace elastify::cli {

Report run_sweep(const Globals& globals, const SweepCommand& command) {
  const pipeline::SweepConfig config = pipeline::load_sweep(command.config, command.overrides);
  nn::set_threads(static_cast<int>(config.base.threads));
  nn::warn_if_blas_is_slow();
  Report report;
  report.json = pipeline::sweep(config, globals.force);
  report.text = pipeline::sweep_table(report.json) +
                fmt::format("\n{0}/sweep.csv, {0}/sweep.json, {0}/sweep.svg\n", config.base.output);
  return report;
}

}  // namespace elastify::cli
