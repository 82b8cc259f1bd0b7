#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace elastify::nn {

// Float32 passes over memory on the CPU, without gradients, each one fused from several of LibTorch's.
// Parallel over rows where not said otherwise.

/// RMS norm of every row. \param x, out  contiguous [rows, n], may be the same; \param weight [n]
void rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& out);

/// Rotates every head's halves in place. \param x contiguous [B, T, H, head_dim]
/// \param cosines, sines  contiguous [T, head_dim / 2]
void rotate_heads(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines);

/// gate = silu(gate) * up, both contiguous and of one shape.
void silu_multiply(const at::Tensor& gate, const at::Tensor& up);

/// Softmax of `scale` * row[first:last] in place, zeros around it: one row, on the calling thread.
void softmax_row(float* row, int64_t n, int64_t first, int64_t last, float scale);

/// From weights p = softmax(scale * s) and dL/dp to dL/ds, in place of dL/dp, on the calling thread.
/// \param weights, grad  contiguous [rows, n]; weights are 0 where nothing was seen
void softmax_backward_rows(const at::Tensor& weights, const at::Tensor& grad, float scale);

/// Running log-sum-exp of rows that arrive in pieces.
/// \param x        contiguous [rows, n], the next piece
/// \param maximum  [rows], starts at -infinity; \param sum [rows], starts at 0: sum of exp(x - maximum)
void accumulate_log_sum_exp(const at::Tensor& x, const at::Tensor& maximum, const at::Tensor& sum);

/// Softmax of every row in place; returns the rows' log-sum-exp. \param x  contiguous [rows, n]
at::Tensor softmax_rows(const at::Tensor& x);

}  // namespace elastify::nn
