// How well each metric predicts what it stands for: the rise of the loss when a unit is left out.

#include <fmt/format.h>

#include "data/task.h"
#include "profile/profile_model.h"
#include "support/batches.h"
#include "support/reference_decoder.h"
#include "support/shared_data.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// The absolute change of the loss without each unit, sequence by sequence and summed as taylor does it,
/// [spaces][n_units].
std::vector<std::vector<double>> remove_every_unit(const Checkpoint& checkpoint,
                                                   const TokenBatches& batches) {
  const c10::NoGradGuard no_gradients;
  const ModelSpec& spec = checkpoint.spec();
  const ReferenceDecoder decoder(checkpoint, at::kFloat);
  const auto n = static_cast<int64_t>(batches.sequences.size());
  const at::Tensor ids = ids_of(batches, 0, batches.sequences.size());
  const at::Tensor whole = decoder.sequence_nll(ids, {}).to(at::kDouble);
  std::vector<at::Tensor> before{decoder.embed(ids)};
  for (int64_t l = 0; l < spec.n_layers; ++l) before.push_back(decoder.layer(l, before.back(), {}));
  std::vector<std::vector<double>> rises;
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    auto& rise = rises.emplace_back();
    for (int64_t unit = 0; unit < spec.spaces[s].n_units; ++unit) {
      auto masks = unit_masks(full_widths(spec), n, false);
      masks[s].select(1, unit).zero_();
      const int64_t first = spec.spaces[s].layer;
      at::Tensor x = decoder.layer(first, before[static_cast<size_t>(first)], {.unit_masks = &masks});
      for (int64_t l = first + 1; l < spec.n_layers; ++l) x = decoder.layer(l, x, {});
      const at::Tensor nll = decoder.token_nll(decoder.final_norm(x, {}), ids).sum(1, false, at::kDouble);
      rise.push_back((nll - whole).abs().sum().item<double>());
    }
  }
  return rises;
}

/// Mean rank correlation between a metric and the truth, over the spaces of a kind.
std::map<Metric, double> correlations(const Profile& profile, const std::vector<std::vector<double>>& truth,
                                      const ModelSpec& spec, SpaceKind kind) {
  std::map<Metric, double> result;
  for (const auto& [metric, scores] : profile.importance) {
    double sum = 0;
    for (int64_t l = 0; l < spec.n_layers; ++l) {
      const size_t s = kind == SpaceKind::kMlp ? spec.mlp_space(l) : spec.attention_space(l);
      sum += rank_correlation(std::vector<double>(scores[s].begin(), scores[s].end()), truth[s]);
    }
    result[metric] = sum / static_cast<double>(spec.n_layers);
  }
  return result;
}

profile::ProfileOptions every_metric() {
  profile::ProfileOptions options;
  options.metrics.clear();
  for (const Metric metric : all_metrics())
    if (metric != Metric::kImatrix && !needs_second_moments(metric)) options.metrics.push_back(metric);
  options.removal_tokens = 0;
  return options;
}

}  // namespace

TEST_CASE("brute force: taylor predicts the loss without each neuron of a tiny model, random does not") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 3});
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(8, 32, spec.n_vocab);
  const auto found =
      correlations(profile::profile_model(decoder, checkpoint, batches, every_metric()).profile,
                   remove_every_unit(checkpoint, batches), spec, SpaceKind::kMlp);
  CHECK(found.at(Metric::kTaylor) > 0.9);
  CHECK(found.at(Metric::kFisher) > 0.85);
  CHECK(std::abs(found.at(Metric::kRandom)) < 0.35);
}

TEST_CASE("brute force: the metrics' rank correlations with the removal of every neuron of stories260K") {
  if (!has_shared_data()) return;
  const fs::path models = shared_data() / "models/stories260K";
  const Checkpoint checkpoint = Checkpoint::open(models / "stories260K.bin");
  const nn::Decoder decoder(checkpoint, {});
  const auto vocabulary = find_vocabulary(models / "stories260K.bin", models / "tok512.model");
  REQUIRE(vocabulary.has_value());
  const TokenBatches batches =
      make_batches(*make_tokenizer(*vocabulary),
                   load_documents({shared_data() / "datasets/tinystories/tinystories_v1_train_head_2MB.txt"}),
                   128, 1024, 0);
  const Profile profile = profile::profile_model(decoder, checkpoint, batches, every_metric()).profile;
  const auto truth = remove_every_unit(checkpoint, batches);
  const auto mlp = correlations(profile, truth, decoder.spec(), SpaceKind::kMlp);
  for (const auto& [metric, correlation] : mlp)
    MESSAGE(fmt::format("{:<15} {:>6.3f}", name_of(metric), correlation));
  CHECK(mlp.at(Metric::kTaylor) > 0.8);
  CHECK(mlp.at(Metric::kTaylor) > mlp.at(Metric::kMagnitude));
  CHECK(mlp.at(Metric::kTaylor) > mlp.at(Metric::kRandom) + 0.5);
}
