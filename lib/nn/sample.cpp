#include "nn/sample.h"

#include <torch/torch.h>

#include <random>

#include "base/progress.h"

namespace elastify::nn {
namespace {

/// Uniform in [0, 1), the same on every platform.
double uniform(std::mt19937_64& engine) {
  return static_cast<double>(engine() >> 11) * 0x1p-53;
}

/// The index at which the running sum of weights passes `share` of their total.
int64_t pick(const float* weights, int64_t n, double share) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(weights[i]);
  double left = share * total;
  int64_t last = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    left -= static_cast<double>(weights[i]);
    if (left < 0) break;
  }
  return last;
}

}  // namespace

std::vector<std::vector<int32_t>> sample_sequences(const Decoder& decoder, int64_t n, int64_t seq_len,
                                                   int32_t first_id, uint64_t seed) {
  const c10::NoGradGuard no_gradients;
  const int64_t n_vocab = decoder.spec().n_vocab;
  std::mt19937_64 engine(seed);
  std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(n), {first_id});
  at::Tensor ids = at::full({n, 1}, int64_t{first_id}, at::TensorOptions().dtype(at::kLong));
  KvCache cache;
  Progress progress("sampling", n * seq_len, "tokens");
  progress.advance(n);
  for (int64_t t = 1; t < seq_len; ++t) {
    const auto hidden = decoder.hidden(ids, {}, &cache);
    const auto weights =
        at::softmax(decoder.logits(hidden).squeeze(1), -1, at::kFloat).to(at::kCPU).contiguous();
    for (int64_t i = 0; i < n; ++i) {
      const int64_t id = pick(weights.data_ptr<float>() + i * n_vocab, n_vocab, uniform(engine));
      sequences[static_cast<size_t>(i)].push_back(static_cast<int32_t>(id));
      ids[i][0] = id;
    }
    progress.advance(n);
  }
  return sequences;
}

}  // namespace elastify::nn
