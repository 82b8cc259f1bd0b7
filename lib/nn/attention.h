#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace elastify::nn {

/// The range of keys that a query sees: [first, last).
struct KeyRange {
  int64_t first, last;
};
/// The keys that the query at `position` sees: all up to its own, or the last `window` of them if that is not
/// 0.
inline KeyRange visible_keys(int64_t position, int64_t window) {
  return {window > 0 && position >= window ? position - window + 1 : 0, position + 1};
}

/// Causal attention of grouped heads without gradients. On the CPU in float32 it works by blocks of queries,
/// so that the scores stay in the cache and few invisible ones are computed. The last stride of all tensors
/// is 1; the others are free. The T queries are the last T of S positions.
/// \param q, out  [B, H, T, head_dim]
/// \param k, v  [B, K, S, head_dim]; query head h belongs to group h / (H / K)
void attend_into(const at::Tensor& out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 int64_t window, double scale);

/// Gradients of a loss by q, k and v. The scores are computed again instead of being kept.
struct AttentionGradients {
  at::Tensor q, k, v;  ///< shaped like q, k, v, laid out as [B, T, heads, head_dim]
};
AttentionGradients attend_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   int64_t window, double scale, const at::Tensor& grad_out);

}  // namespace elastify::nn
