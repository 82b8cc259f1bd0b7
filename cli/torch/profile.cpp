#include "base/error.h"
#include "cli/commands.h"
#include "nn/decoder.h"
#include "pipeline/steps.h"

namespace elastify::cli {

Report run_profile(const Globals& globals, const ProfileCommand& command) {
  require_absent(command.output, globals.force);
  if (command.options.data.empty())
    throw UsageError("no calibration text", "--data FILE..., or --data self to let the model write its own");
  nn::set_threads(globals.threads);
  nn::warn_if_blas_is_slow();
  const pipeline::OpenModel model = pipeline::open_model(command.model, globals.tokenizer);
  const pipeline::Measured measured = pipeline::measure_profile(model, globals.compute, command.options);
  save_profile(measured.profile, model.checkpoint.spec(), command.output);

  const auto tokens = measured.profile.n_tokens;
  const double rate = static_cast<double>(tokens) / measured.seconds;
  Report report;
  report.json = {{"tokens", tokens},
                 {"tokens_per_second", rate},
                 {"seconds", measured.seconds},
                 {"peak_rss_bytes", pipeline::peak_rss_bytes()},
                 {"base_loss", measured.profile.base_loss},
                 {"output", command.output.string()}};
  report.text = fmt::format(
      "{} tokens in {:.1f} s, {:.0f} tokens/s, peak memory {:.0f} MiB -> {}\n", tokens, measured.seconds,
      rate, static_cast<double>(pipeline::peak_rss_bytes()) / (1 << 20), command.output.string());
  return report;
}

}  // namespace elastify::cli
