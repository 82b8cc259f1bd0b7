#include "recover/adapter_ranks.h"

#include <torch/torch.h>

#include "recover/closed_form.h"
#include "recover/stream_metric.h"
#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;
using recover::LayerRanks;

namespace {

recover::ClosedFormOptions options_of(int64_t rank) {
  recover::ClosedFormOptions options;
  options.compensation = Compensation::kAdapter;
  options.rank = rank;
  options.spread_ranks = true;
  options.ridge = 1e-6;
  return options;
}

/// Parameters of one rank of an adapter of o (0) or down (1).
int64_t size_of_rank(const nn::Decoder& decoder, int64_t layer, int half, const Widths& widths) {
  const at::Tensor weight = decoder.projection(layer, half == 0 ? Site::kAttnOut : Site::kFfnDown, widths);
  return weight.size(1) == 0 ? 0 : weight.size(0) + weight.size(1);
}

int64_t n_params(const nn::Decoder& decoder, const std::vector<LayerRanks>& ranks, const Widths& widths) {
  int64_t n = 0;
  for (size_t l = 0; l < ranks.size(); ++l)
    n += ranks[l].attention_out * size_of_rank(decoder, static_cast<int64_t>(l), 0, widths) +
         ranks[l].down * size_of_rank(decoder, static_cast<int64_t>(l), 1, widths);
  return n;
}

}  // namespace

TEST_CASE(
    "adapter ranks: a level's adapters are as large as ones of the rank on every matrix, or a rank less") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const nn::Decoder decoder(tiny_checkpoint(variant.spec), {});
    const at::Tensor ids = random_ids(8, 32, variant.spec.n_vocab);
    const auto metrics = recover::stream_metrics(decoder, {ids}, {});
    const Widths widths = half_widths(variant.spec);
    for (const int64_t rank : {1, 3, 1000}) {
      CAPTURE(rank);
      const auto ranks = recover::spread_ranks(decoder, {ids}, {widths}, metrics, options_of(rank)).front();
      std::vector<LayerRanks> even;
      int64_t largest = 0;
      for (int64_t l = 0; l < variant.spec.n_layers; ++l) {
        const auto most = [&](Site site) {
          const at::Tensor weight = decoder.projection(l, site, widths);
          return std::min({rank, weight.size(0), weight.size(1)});
        };
        even.push_back({most(Site::kAttnOut), most(Site::kFfnDown)});
        for (const int half : {0, 1}) largest = std::max(largest, size_of_rank(decoder, l, half, widths));
      }
      const int64_t budget = n_params(decoder, even, widths), spent = n_params(decoder, ranks, widths);
      CHECK(spent <= budget);
      CHECK(spent > budget - largest);
      if (rank == 1000) CHECK(spent == budget);
    }
  }
}

TEST_CASE("adapter ranks: they go where units are left out, and each level has its own") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 4});
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor ids = random_ids(16, 32, spec.n_vocab);
  const auto metrics = recover::stream_metrics(decoder, {ids}, {});
  std::vector<Widths> levels(2, full_widths(spec));
  levels[0][spec.mlp_space(1)] = 20;
  levels[1][spec.attention_space(2)] = 1;
  const auto ranks = recover::spread_ranks(decoder, {ids}, levels, metrics, options_of(1));
  const auto total = [](const std::vector<LayerRanks>& level) {
    int64_t n = 0;
    for (const LayerRanks& layer : level) n += layer.attention_out + layer.down;
    return n;
  };
  CHECK(ranks[0][1].down > 6);
  CHECK(ranks[0][1].down == total(ranks[0]));
  CHECK(ranks[1][2].attention_out > 6);
  CHECK(ranks[1][2].attention_out == total(ranks[1]));
}

TEST_CASE("adapter ranks: halves that a level leaves out get none, those without rank no adapter") {
  const ModelSpec spec = make_tiny_spec("qwen2", {.n_layers = 4});
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor ids = random_ids(8, 32, spec.n_vocab);
  Widths widths = shallow_widths(spec);
  widths[spec.mlp_space(0)] = 24;
  const auto options = options_of(2);
  const auto ranks =
      recover::spread_ranks(decoder, {ids}, {widths}, recover::stream_metrics(decoder, {ids}, {}), options)
          .front();
  const nn::LevelRepair repair = recover::fit_level(decoder, {ids}, widths, options);
  for (size_t l = 0; l < 4; ++l) {
    CAPTURE(l);
    const auto rank = [&](Role role) {
      const nn::TensorRepair* found = repair.find(static_cast<int64_t>(l), role);
      return found != nullptr && found->a.defined() ? found->a.size(0) : 0;
    };
    CHECK(rank(Role::kAttnOut) == ranks[l].attention_out);
    CHECK(rank(Role::kDown) == ranks[l].down);
    if (widths[2 * l] == 0) CHECK(ranks[l].attention_out == 0);
    if (widths[2 * l + 1] == 0) CHECK(ranks[l].down == 0);
  }
  CHECK(ranks[0].down > 2);
}
