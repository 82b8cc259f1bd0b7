#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace elastify::nn {

/// Which keys the query at `position` sees: [first, last).
struct KeyRange {
  int64_t first, last;
};
/// Causal attention, over the last `window` positions where that is not 0.
inline KeyRange visible_keys(int64_t position, int64_t window) {
  return {window > 0 && position >= window ? position - window + 1 : 0, position + 1};
}

/// Causal attention of grouped heads without gradients. On the CPU in float32 it goes by blocks of queries,
/// so that the scores stay in the cache and no more of them are computed than are seen. Any strides but the
/// last, which is 1. The T queries are the last T of S positions.
/// \param q, out  [B, H, T, head_dim]
/// \param k, v  [B, K, S, head_dim]; query head h belongs to group h / (H / K)
void attend_into(const at::Tensor& out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 int64_t window, double scale);

/// Gradients of q, k and v, given that of the result; the scores are computed again instead of being kept.
struct AttentionGradients {
  at::Tensor q, k, v;  ///< shaped like q, k, v, laid out as [B, T, heads, head_dim]
};
AttentionGradients attend_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   int64_t window, double scale, const at::Tensor& grad_out);

}  // namespace elastify::nn
