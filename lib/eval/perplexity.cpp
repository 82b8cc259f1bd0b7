#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <optional>
#include <span>

#include "base/error.h"
#include "eval/evaluate.h"
#include "nn/token_ids.h"

namespace elastify::eval {

PerplexityResult perplexity(const nn::Decoder& decoder, const TokenBatches& batches, const Widths* widths,
                            int64_t batch, Progress* progress, const nn::LevelRepair* repairs) {
  if (batch < 1) throw UsageError(fmt::format("eval.batch: expected 1 or more, got {}", batch));
  if (batches.sequences.empty() || batches.seq_len < 2)
    fail("evaluation data: expected sequences of 2 tokens or more, got {} of {}", batches.sequences.size(),
         batches.seq_len);
  const c10::NoGradGuard no_gradients;
  const auto start = std::chrono::steady_clock::now();
  nn::ForwardOptions options;
  options.widths = widths;
  options.repairs = repairs;
  PerplexityResult result;
  double nll = 0;
  std::optional<Progress> own;
  if (progress == nullptr) progress = &own.emplace("perplexity", batches.n_tokens(), "tokens");
  const std::span<const std::vector<int32_t>> sequences = batches.sequences;
  for (size_t first = 0; first < sequences.size(); first += static_cast<size_t>(batch)) {
    const at::Tensor ids = nn::stack_ids(
        sequences.subspan(first, std::min(static_cast<size_t>(batch), sequences.size() - first)));
    nll += decoder.sequence_nll(ids, options).sum().item<double>();
    result.tokens += ids.size(0) * (ids.size(1) - 1);
    progress->advance(ids.numel());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.nll = nll / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.nll);
  if (batches.n_bytes > 0)
    result.bits_per_byte = nll / std::numbers::ln2 / static_cast<double>(batches.n_bytes);
  result.tokens_per_second = static_cast<double>(batches.n_tokens()) / seconds;
  return result;
}

void require_finite(const PerplexityResult& result) {
  if (!std::isfinite(result.nll))
    throw Error(
        "the loss is not finite",
        "weights or repairs have infinite values or NaN, or --dtype f16 overflows: f32 and bf16 do not");
}

}  // namespace elastify::eval
