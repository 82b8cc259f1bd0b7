#include "pipeline/measure_profile.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/log.h"
#include "base/path.h"
#include "profile/memory.h"
#include "profile/profile_model.h"

namespace elastify::pipeline {

Measured measure_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                         const profile::ProfileOptions& options, const profile::WorkOptions& work,
                         const fs::path& work_directory, const Communicator& processes) {
  nn::DecoderOptions placement = compute;
  placement.streamed = profile::must_stream(model.checkpoint.spec(), options, work.max_ram);
  const TextOptions& text = options.text;
  if (placement.streamed && std::find(text.data.begin(), text.data.end(), "self") != text.data.end())
    throw UsageError("data: sampling text from the model itself needs all of it in memory",
                     "give text files, or a larger --max-ram");
  const nn::Decoder decoder(model.checkpoint, placement);
  TokenBatches batches;  // empty for metrics that need no text
  if (!text.data.empty()) batches = load_batches(model, decoder, text, true);
  const auto start = std::chrono::steady_clock::now();
  Measured measured;
  profile::Measured result =
      profile::profile_model(decoder, model.checkpoint, batches, options, work, work_directory, processes);
  measured.profile = std::move(result.profile);
  measured.profile.permutation_digest = model.permutation_digest;
  measured.profile.corpus = fmt::format("{}", fmt::join(text.data, ", "));
  measured.moments = std::move(result.moments);
  measured.streamed = placement.streamed;
  measured.pass_seconds = result.pass_seconds;
  measured.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return measured;
}

Profile load_profile_of(const OpenModel& model, const fs::path& path) {
  Profile profile = load_profile(path, model.checkpoint.spec());
  if (profile.permutation_digest == model.permutation_digest) return profile;
  const auto order = [](const std::string& digest) {
    return digest.empty() ? "in their original order" : fmt::format("reordered ({:.8})", digest);
  };
  throw UsageError(fmt::format("{}: the units of the measured model are {}, but those of {} are {}",
                               path.string(), order(profile.permutation_digest),
                               model.checkpoint.path().string(), order(model.permutation_digest)),
                   "give the model that was profiled, or profile this one");
}

void fit_batch(RunConfig& config, const ModelSpec& spec) {
  int64_t& batch = config.profile.text.batch;
  if (config.max_ram == 0 || config.sources.contains("profile.batch")) return;
  const int64_t given = batch;
  while (batch > 1 && profile::memory_need(spec, config.profile).streamed > config.max_ram) batch /= 2;
  if (batch == given) return;
  config.sources["profile.batch"] = "fitted to max_ram";
  log::info("profile.batch: {} instead of {}, to stay within max_ram", batch, given);
}

fs::path unfinished_path(const fs::path& output) {
  return without_trailing_slash(output).string() + ".partial";
}

Measured write_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                       const profile::ProfileOptions& options, const profile::WorkOptions& work,
                       const fs::path& output, const Communicator& processes) {
  const fs::path unfinished = unfinished_path(output);
  Measured measured = measure_profile(model, compute, options, work, unfinished, processes);
  if (processes.is_root()) save_profile(measured.profile, model.checkpoint.spec(), output, measured.moments);
  processes.wait();
  std::error_code ignored;
  if (processes.is_root()) fs::remove_all(unfinished, ignored);
  return measured;
}

}  // namespace elastify::pipeline
