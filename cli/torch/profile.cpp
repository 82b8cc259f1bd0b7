#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "cli/commands.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/steps.h"

namespace elastify::cli {
namespace {

Report profile_with(const Communicator& processes, const Globals& globals, const ProfileCommand& command) {
  require_absent(command.output, globals.force);
  profile::ProfileOptions options = command.options;
  if (options.data.empty()) {
    if (!options.imatrix.empty()) options.metrics = {Metric::kImatrix};
    if (options.second_moments || std::any_of(options.metrics.begin(), options.metrics.end(), needs_data))
      throw UsageError("no calibration text",
                       "--data FILE..., or --data self to let the model write its own");
    options.removal_tokens = 0;
  }
  if (!processes.is_root()) log::set_level(log::Level::kQuiet);
  nn::set_threads(globals.threads);
  nn::warn_if_blas_is_slow();
  profile::WorkOptions work = command.work;
  if (command.resume) {
    work.existing = profile::WorkOptions::Existing::kResume;
  } else if (globals.force) {
    std::error_code ignored;
    if (processes.is_root()) fs::remove_all(pipeline::unfinished_path(command.output), ignored);
    processes.wait();
  }
  nn::DecoderOptions compute = globals.compute;
  if (compute.device == "cuda" && processes.size() > 1)
    compute.device = nn::device_of_process(processes.rank());
  const pipeline::OpenModel model = pipeline::open_model(command.model, globals.tokenizer);
  const pipeline::Measured measured =
      pipeline::write_profile(model, compute, options, work, command.output, processes);

  Report report;
  if (!processes.is_root()) return report;
  const auto tokens = measured.profile.n_tokens;
  const double rate = measured.pass_seconds > 0 ? static_cast<double>(tokens) / measured.pass_seconds : 0;
  const double mebibytes = static_cast<double>(peak_resident_bytes()) / (1 << 20);
  report.json = {{"tokens", tokens},
                 {"tokens_per_second", rate},
                 {"seconds", measured.seconds},
                 {"peak_rss_bytes", peak_resident_bytes()},
                 {"base_loss", measured.profile.base_loss},
                 {"streamed", measured.streamed},
                 {"processes", processes.size()},
                 {"output", command.output.string()}};
  report.text = fmt::format("{} tokens at {:.0f} tokens/s, {:.1f} s in all, peak memory {:.0f} MiB{} -> {}\n",
                            tokens, rate, measured.seconds, mebibytes, measured.streamed ? ", streamed" : "",
                            command.output.string());
  return report;
}

}  // namespace

Report run_profile(const Globals& globals, const ProfileCommand& command) {
  const Communicator processes = Communicator::start();
  if (processes.size() == 1) return profile_with(processes, globals, command);
  try {
    return profile_with(processes, globals, command);
  } catch (const Error& error) {
    fmt::print(stderr, "elastify profile: error: {}\n", error.what());
    if (!error.hint().empty()) fmt::print(stderr, "  hint: {}\n", error.hint());
    processes.abort(1);  // the others would wait for this one for ever
  }
}

}  // namespace elastify::cli
