#pragma once

#include <ATen/core/Tensor.h>

namespace elastify::nn {

// The differences between LibTorch 1.13 and 2.x.

/// softmax(scale q k^T + mask) v with gradients, on any device.
/// \param q        [B, H, T, head_dim]
/// \param k, v  [B, K, S, head_dim]; H / K query heads share one
/// \param visible  bool [T, S]: whether a query sees a key
at::Tensor attend_differentiable(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& visible, double scale);

/// Whether the CPU supports matrix products in float16.
bool has_half_on_cpu();

}  // namespace elastify::nn
