#include <torch/torch.h>

#include <random>

#include "base/error.h"
#include "eval/evaluate.h"

namespace elastify::eval {

double logit_difference(const nn::Decoder& a, const nn::Decoder& b, int64_t n_tokens, uint64_t seed,
                        const nn::ForwardOptions& options_of_a) {
  const int64_t n_vocab = a.spec().n_vocab;
  if (n_vocab != b.spec().n_vocab)
    fail("models have different vocabularies: {} and {} tokens", n_vocab, b.spec().n_vocab);
  if (n_tokens < 1) throw UsageError(fmt::format("tokens: expected 1 or more, got {}", n_tokens));
  const c10::NoGradGuard no_gradients;
  std::mt19937_64 engine(seed);
  at::Tensor ids = at::empty({1, n_tokens}, at::TensorOptions().dtype(at::kLong));
  for (int64_t i = 0; i < n_tokens; ++i)
    ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(engine() % static_cast<uint64_t>(n_vocab));
  const auto logits_of = [&](const nn::Decoder& decoder, const nn::ForwardOptions& options) {
    return decoder.logits(decoder.hidden(ids, options)).to(at::kCPU, at::kDouble);
  };
  const at::Tensor first = logits_of(a, options_of_a);
  return (first - logits_of(b, {})).abs().max().item<double>() / first.std().item<double>();
}

}  // namespace elastify::eval
