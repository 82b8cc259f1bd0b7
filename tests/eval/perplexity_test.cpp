#include <cmath>

#include "eval/evaluate.h"
#include "support/decoders.h"
#include "support/errors.h"
#include "support/shared_data.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE(
    "perplexity: the exponential of the mean nll of predicted tokens, whatever the batch, at any width") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  TokenBatches batches;
  batches.seq_len = 9;
  batches.n_bytes = 123;
  const at::Tensor ids = random_ids(5, 9, spec.n_vocab);
  for (int64_t i = 0; i < 5; ++i) {
    const at::Tensor row = ids[i].to(at::kInt).contiguous();
    batches.sequences.emplace_back(row.data_ptr<int32_t>(), row.data_ptr<int32_t>() + 9);
  }
  const Widths narrow = half_widths(spec);
  for (const Widths* widths : {static_cast<const Widths*>(nullptr), &narrow}) {
    nn::ForwardOptions options;
    options.widths = widths;
    const auto log_p = at::log_softmax(decoder.logits(decoder.hidden(ids, options)).narrow(1, 0, 8), -1);
    const double nll = -log_p.gather(2, ids.narrow(1, 1, 8).unsqueeze(2)).sum(at::kDouble).item<double>();
    for (const int64_t batch : {1, 2, 8}) {
      const auto result = eval::perplexity(decoder, batches, widths, batch);
      CHECK(result.tokens == 40);
      CHECK(result.nll == doctest::Approx(nll / 40).epsilon(1e-6));
      CHECK(result.perplexity == doctest::Approx(std::exp(nll / 40)).epsilon(1e-5));
      CHECK(result.bits_per_byte == doctest::Approx(nll / std::log(2.0) / 123).epsilon(1e-6));
      CHECK(result.tokens_per_second > 0);
    }
  }
  CHECK(message_of([&] { eval::perplexity(decoder, {}, nullptr, 1); }) ==
        "evaluation data: expected sequences of 2 tokens or more, got 0 of 0");
  CHECK(message_of([&] { eval::perplexity(decoder, batches, nullptr, 0); }) ==
        "eval.batch: expected 1 or more, got 0");

  nn::LevelRepair broken;
  broken.layers.resize(static_cast<size_t>(spec.n_layers));
  broken.output_norm = at::full({spec.d_model}, std::nan(""));
  const auto result = eval::perplexity(decoder, batches, nullptr, 2, nullptr, &broken);
  CHECK(message_of([&] { eval::require_finite(result); }) == "the loss is not finite");
}

TEST_CASE("compare: a model does not differ from itself, but much from one with another seed") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder a(tiny_checkpoint(spec, 1), {}), b(tiny_checkpoint(spec, 2), {});
  CHECK(eval::logit_difference(a, a, 32, 1) == 0);
  CHECK(eval::logit_difference(a, b, 32, 1) > 0.5);
}
