#include "pipeline/run.h"
#include "cli/commands.h"
#include "nn/device.h"
#include "nn/system.h"

namespace elastify::cli {

Report run_run(const Globals& globals, const RunCommand& command) {
  pipeline::RunConfig config = pipeline::load_config(command.config, command.overrides);
  nn::set_threads(static_cast<int>(config.threads));
  nn::warn_if_blas_is_slow();
  Report report;
  report.json = pipeline::run(config, globals.force);
  report.text = pipeline::table(report.json) +
                fmt::format("\n{0}/artifact, {0}/report.json, {0}/report.svg\n", config.output);
  return report;
}

}  // namespace elastify::cli
