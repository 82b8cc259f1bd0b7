#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "cli/claim.h"
#include "cli/torch/work.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/fit_to_model.h"
#include "pipeline/measure_profile.h"

namespace elastify::cli {
namespace {

/// Without text, only metrics that need none are measured.
/// \throws UsageError  if others are asked for
void require_text(const Invocation& call, profile::ProfileOptions& options) {
  if (!options.text.data.empty()) return;
  if (!options.imatrix.empty() && !call.given("profile.metrics")) options.metrics = {Metric::kImatrix};
  if (options.second_moments || std::any_of(options.metrics.begin(), options.metrics.end(), needs_data))
    throw UsageError("no calibration text", "--data FILE..., or --data self to let the model write its own");
  options.removal_tokens = 0;
}

profile::WorkOptions work_of(const Invocation& call, const ProfileCommand& command) {
  profile::WorkOptions work;
  work.max_ram = call.config.max_ram;
  work.save_every = call.config.profile.save_every;
  using Existing = profile::WorkOptions::Existing;
  work.existing = command.resume ? Existing::kResume : call.force ? Existing::kReplace : Existing::kRefuse;
  return work;
}

Report profile_with(const Communicator& processes, const Invocation& call, const ProfileCommand& command) {
  std::optional<OutputLock> lock;
  if (processes.is_root()) lock.emplace(claim(call, command.output, {command.model}));
  processes.wait();
  pipeline::RunConfig config = call.config;
  config.profile.text.seed = config.seed;
  require_text(call, config.profile);
  if (!processes.is_root()) log::set_level(log::Level::kQuiet);
  nn::set_threads(static_cast<int>(config.threads));
  nn::warn_if_blas_is_slow();
  if (config.compute.device == "cuda" && processes.size() > 1)
    config.compute.device = nn::device_of_process(processes.rank());
  const pipeline::OpenModel model = pipeline::open_model(command.model, config.tokenizer);
  pipeline::fit_to_model(config, model.checkpoint.spec());
  pipeline::fit_batch(config, model.checkpoint.spec());
  const pipeline::Measured measured = pipeline::write_profile(
      model, config.compute, config.profile, work_of(call, command), command.output, processes);

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

Report work(const Invocation& call, const ProfileCommand& command) {
  const Communicator processes = Communicator::start();
  if (processes.size() == 1) return profile_with(processes, call, command);
  try {
    return profile_with(processes, call, command);
  } catch (const Error& error) {
    fmt::print(stderr, "elastify profile: error: {}\n", error.what());
    if (!error.hint().empty()) fmt::print(stderr, "  hint: {}\n", error.hint());
    processes.abort(1);  // the others would wait for this one forever
  }
}

}  // namespace elastify::cli
