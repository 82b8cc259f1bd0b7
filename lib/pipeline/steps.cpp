#include "pipeline/steps.h"

#include <fmt/ranges.h>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "nn/sample.h"
#include "pipeline/repairs.h"
#include "pipeline/widths.h"
#include "profile/memory.h"
#include "profile/profile_model.h"
#include "solve/rank_by_moments.h"

namespace elastify::pipeline {

OpenModel open_model(const fs::path& path, const fs::path& tokenizer, std::optional<double> level) {
  if (!fs::exists(path))
    throw UsageError(fmt::format("{}: there is no such file or directory", path.string()));
  if (is_artifact(path)) {
    auto files = PlainFiles::of(path, level.value_or(1));
    const fs::path file = files->file(level.value_or(1));
    return {Checkpoint::open(file), find_vocabulary(file, tokenizer), std::nullopt, std::move(files)};
  }
  OpenModel model{Checkpoint::open(path), find_vocabulary(path, tokenizer), std::nullopt};
  if (reorder::is_reordered(path)) {
    model.plan = load_plan(path / "plan.json", model.checkpoint.spec());
    model.permutation_digest = digest(load_permutation(path / "permutation.h5", model.checkpoint.spec()));
  }
  if (level && *level < 1 && !model.plan)
    throw UsageError(
        fmt::format("{}: this model has no level {}: it was not reordered", path.string(), *level),
        "make levels with `elastify reorder`, and give the directory that it writes");
  return model;
}

TokenBatches load_batches(const OpenModel& model, const nn::Decoder& decoder,
                          const std::vector<std::string>& data, int64_t seq, int64_t tokens,
                          std::optional<uint64_t> seed) {
  const bool self = std::find(data.begin(), data.end(), "self") != data.end();
  if (self) {
    if (data.size() > 1) throw UsageError("data: 'self' stands alone, not beside files");
    const int64_t n = std::max<int64_t>(1, (tokens > 0 ? tokens : 8192) / seq);
    const auto first = model.vocabulary ? model.vocabulary->bos : std::nullopt;
    TokenBatches batches;
    batches.seq_len = seq;
    batches.sequences =
        nn::sample_sequences(decoder, n, seq, static_cast<int32_t>(first.value_or(0)), seed.value_or(0));
    Sha256 digest;
    for (const auto& sequence : batches.sequences) digest.update(std::as_bytes(std::span(sequence)));
    batches.digest = digest.finish();
    return batches;
  }
  if (!model.vocabulary)
    throw UsageError(fmt::format("{}: the model carries no tokenizer", model.checkpoint.path().string()),
                     "name one with --tokenizer FILE (tokenizer.json, .model, .bin or .gguf)");
  if (model.vocabulary->size() > model.checkpoint.spec().n_vocab)
    throw Error(fmt::format("the tokenizer has {} tokens, the model {} rows", model.vocabulary->size(),
                            model.checkpoint.spec().n_vocab),
                "this is another model's tokenizer; name the right one with --tokenizer");
  const auto tokenizer = make_tokenizer(*model.vocabulary);
  const std::vector<fs::path> files(data.begin(), data.end());
  return make_batches(*tokenizer, load_documents(files), seq, tokens, seed);
}

Measured measure_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                         const profile::ProfileOptions& options, const profile::WorkOptions& work,
                         const fs::path& work_directory, const Communicator& processes) {
  nn::DecoderOptions placement = compute;
  placement.streamed = profile::must_stream(model.checkpoint.spec(), options, work.max_ram);
  if (placement.streamed && std::find(options.data.begin(), options.data.end(), "self") != options.data.end())
    throw UsageError("data: sampling text from the model itself needs all of it in memory",
                     "give text files, or a larger --max-ram");
  const nn::Decoder decoder(model.checkpoint, placement);
  TokenBatches batches;  // none for metrics that need none
  if (!options.data.empty())
    batches = load_batches(model, decoder, options.data, options.seq, options.tokens,
                           static_cast<uint64_t>(options.seed));
  const auto start = std::chrono::steady_clock::now();
  Measured measured;
  profile::Measured result =
      profile::profile_model(decoder, model.checkpoint, batches, options, work, work_directory, processes);
  measured.profile = std::move(result.profile);
  measured.profile.permutation_digest = model.permutation_digest;
  measured.profile.corpus = fmt::format("{}", fmt::join(options.data, ", "));
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
    return digest.empty() ? "as they came" : fmt::format("reordered ({:.8})", digest);
  };
  throw UsageError(fmt::format("{}: was measured with the units {}, and those of {} are {}", path.string(),
                               order(profile.permutation_digest), model.checkpoint.path().string(),
                               order(model.permutation_digest)),
                   "give the model that was profiled, or profile this one");
}

fs::path unfinished_path(const fs::path& output) {
  return output.string() + ".partial";
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

MomentSource moments_of(const fs::path& profile, const ModelSpec& spec) {
  if (!has_second_moments(profile)) return nullptr;
  return [profile, spec](size_t space) { return load_second_moments(profile, spec, space).xtx; };
}

Permutation rank(const Checkpoint& model, const Profile* profile, const MomentSource& moments,
                 const ReorderSection& options, int64_t seed, const std::string& device) {
  const Metric metric = options.metric;
  if (needs_second_moments(metric)) {
    if (profile == nullptr || !moments)
      throw UsageError(
          fmt::format("metric '{}' is worked out of second moments, and there are none", name_of(metric)),
          "run `elastify profile` with --second-moments");
    return solve::rank_by_moments(model, moments, profile->n_tokens, metric, kMomentRidge, device);
  }
  Profile measured = profile != nullptr ? *profile : Profile{};
  measured.spec_hash = spec_hash(model.spec());
  if (measured.importance.count(metric) == 0) {
    if (needs_data(metric) || metric == Metric::kImatrix)
      throw UsageError(fmt::format("metric '{}' is not in the profile", name_of(metric)),
                       "profile with this metric, or choose another");
    profile::add_data_free_metric(measured, model, metric, seed);
  }
  return rank_units(measured, model.spec(), metric);
}

Checkpoint arranged(const Checkpoint& model, const Permutation& order) {
  return model.transformed([spec = model.spec(), order](size_t i, HostTensor tensor) {
    return permute(convert(tensor, DType::kF32), spec.tensors[i], order);
  });
}

ElasticPlan write_reordered(const OpenModel& model, const Profile* profile, const MomentSource& moments,
                            const ReorderSection& options, int64_t seed, const fs::path& output, bool replace,
                            const Calibration* calibration, const ElasticPlan* given) {
  require_absent(output, replace);
  const bool repaired = options.repair.compensation != Compensation::kNone;
  if (repaired && calibration == nullptr) fail("repairs are fitted on text, and there is none");
  const std::string device = calibration != nullptr ? calibration->compute.device : "cpu";
  const Permutation permutation = rank(model.checkpoint, profile, moments, options, seed, device);
  const ElasticPlan plan =
      given != nullptr ? *given
                       : plan_widths(model, profile, moments, permutation, options, seed, calibration).plan;
  for (const auto& note : plan.notes) log::info("{}", note);
  AtomicDirectory directory(output, replace);
  reorder::reorder_model(model.checkpoint, model.vocabulary ? &*model.vocabulary : nullptr, permutation, plan,
                         options.reorder, directory.path());
  if (repaired) {
    Calibration fitting = *calibration;
    fitting.text = fitting_text(fitting.text, options);
    write_repairs(model, plan, options.repair, fitting, seed, directory.path());
  }
  directory.commit();
  return plan;
}

double true_ratio(const fs::path& path, std::optional<double> level) {
  if (!level || *level >= 1) return 1;
  if (is_artifact(path)) return stated_ratio(path, *level);
  return find_level(load_plan(path / "plan.json", Checkpoint::open(path).spec()), *level).decoder_ratio;
}

std::string content_hash(const std::vector<fs::path>& files) {
  Sha256 digest;
  for (const fs::path& file : files) digest.update(sha256_file(file) + "\n");
  return digest.finish();
}

std::string text_hash(const std::vector<std::string>& data) {
  std::vector<fs::path> files;
  for (const auto& name : data)
    if (name != "self") files.emplace_back(name);
  return content_hash(files);
}

std::string imatrix_hash(const profile::ProfileOptions& options) {
  return options.imatrix.empty() ? "" : sha256_file(options.imatrix);
}

std::string latencies_hash(const ReorderSection& options) {
  return options.plan.budget.table.empty() ? "" : sha256_file(options.plan.budget.table);
}

nlohmann::ordered_json identity(const OpenModel& model) {
  return {{"model", content_hash(model.checkpoint.files())},
          {"tokenizer", model.vocabulary ? digest(*model.vocabulary) : ""}};
}

nlohmann::ordered_json compute_key(const RunConfig& config) {
  return {{"device", config.compute.device}, {"dtype", config.compute.dtype}, {"threads", config.threads}};
}

}  // namespace elastify::pipeline
