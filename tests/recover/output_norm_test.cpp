#include "recover/output_norm.h"

#include "support/batches.h"
#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;

namespace {

at::Tensor log_softmax(const nn::Decoder& decoder, const at::Tensor& hidden) {
  return at::log_softmax(decoder.logits(hidden).to(at::kDouble), -1);
}

/// Kullback-Leibler divergence of the full model from a level, per token, computed from the logits.
double divergence(const nn::Decoder& decoder, const at::Tensor& ids, const Widths& widths,
                  const nn::LevelRepair* repair, double factor = 1) {
  const c10::NoGradGuard no_gradients;
  nn::ForwardOptions options;
  options.widths = &widths;
  options.repairs = repair;
  const at::Tensor full = log_softmax(decoder, decoder.hidden(ids));
  const at::Tensor level = log_softmax(decoder, decoder.hidden(ids, options) * factor);
  return (full.exp() * (full - level)).sum(-1).mean().item<double>();
}

nn::LevelRepair nothing(const ModelSpec& spec) {
  nn::LevelRepair repair;
  repair.layers.resize(static_cast<size_t>(spec.n_layers));
  return repair;
}

nn::LevelRepair fitted(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                       const Widths& widths) {
  std::vector<nn::LevelRepair> repairs{nothing(decoder.spec())};
  recover::fit_output_norms(decoder, batches, {widths}, repairs);
  return repairs.front();
}

}  // namespace

TEST_CASE("output norm: on its own text a level diverges less than with any common factor") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const nn::Decoder decoder(tiny_checkpoint(variant.spec), {});
    const at::Tensor ids = random_ids(1, 64, variant.spec.n_vocab);  // nothing to hold out
    const Widths widths = half_widths(variant.spec);
    const nn::LevelRepair repair = fitted(decoder, {ids}, widths);
    const double found = divergence(decoder, ids, widths, &repair);
    CHECK(found < 0.95 * divergence(decoder, ids, widths, nullptr));
    for (double factor = 0.1; factor < 1.5; factor += 0.1) {
      CAPTURE(factor);
      CHECK(found < divergence(decoder, ids, widths, nullptr, factor));
    }
  }
}

TEST_CASE("output norm: the full model keeps its own") {
  const ModelSpec spec = make_tiny_spec("qwen2");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const auto repair = fitted(decoder, {random_ids(10, 24, spec.n_vocab)}, full_widths(spec));
  CHECK(relative_difference(repair.output_norm, decoder.output_norm()) < 1e-3);
}

TEST_CASE("output norm: fitted on a few tokens, a level diverges less on other text, too") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor fresh = random_ids(32, 32, spec.n_vocab, 99);
  const Widths widths = half_widths(spec);
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    const auto repair = fitted(decoder, {random_ids(10, 6, spec.n_vocab, seed)}, widths);
    CHECK(divergence(decoder, fresh, widths, &repair) < 0.8 * divergence(decoder, fresh, widths, nullptr));
  }
}

TEST_CASE("output norm: a streamed decoder finds the same") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint model = tiny_checkpoint(spec);
  nn::DecoderOptions options;
  options.streamed = true;
  const std::vector<at::Tensor> batches{random_ids(6, 20, spec.n_vocab, 1),
                                        random_ids(3, 20, spec.n_vocab, 2)};
  const auto at_once = fitted(nn::Decoder(model, {}), batches, half_widths(spec));
  const auto streamed = fitted(nn::Decoder(model, options), batches, half_widths(spec));
  CHECK(relative_difference(streamed.output_norm, at_once.output_norm) < 1e-5);
}
