#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/spec.h"

namespace elastify::nn {

// Kernels without gradients, each of which fuses several LibTorch operations. On the CPU in float32 they are
// our own loops, parallel over rows. Elsewhere they use LibTorch's operations, in float32 where rounding
// would hurt.

/// Whether our own loops handle this tensor: float32 on the CPU.
bool is_fused(const at::Tensor& x);

/// RMS norm of every row.
/// \param x, out  contiguous [rows, n], may be the same;
/// \param weight  [n]
void rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& out);
/// grad_x += dL/dx, given dL/dout.
/// \param x, grad, grad_x  contiguous [rows, n], none the same
void rms_norm_backward_rows(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& grad,
                            const at::Tensor& grad_x);

/// Rotates every head's halves in place.
/// \param x  contiguous [B, T, H, head_dim]
/// \param cosines, sines  contiguous float32 [T, head_dim / 2]
void rotate_heads(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines);

/// out = activation(gate) * up, contiguous and of one shape; out may be gate.
void multiply_gated(Activation activation, const at::Tensor& gate, const at::Tensor& up,
                    const at::Tensor& out);
/// Replaces gate and up by dL/dgate and dL/dup, given grad = dL/dout.
/// \param gate, up, grad  contiguous [B, T, n]
/// \returns               sum over t of out * dL/dout, float64 [B, n]
at::Tensor multiply_gated_backward(Activation activation, const at::Tensor& gate, const at::Tensor& up,
                                   const at::Tensor& grad);

/// Sum over t of x * y.
/// \param x, y  contiguous [B, T, n];
/// \returns float64 [B, n]
at::Tensor sum_products(const at::Tensor& x, const at::Tensor& y);

/// Adds the columns' sums of x and x^2.
/// \param x  contiguous [rows, n];
/// \param sum, squares  float64 [n], CPU
void add_column_sums(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& squares);

/// Adds x^T x on and below the diagonal. The elements above it have no meaning.
/// \param x  [rows, n];
/// \param total  float64 [n, n], CPU
void add_moments(const at::Tensor& x, const at::Tensor& total);

// The following are for float32 on the CPU only.

/// Replaces row[first:last] by the softmax of `scale` times it, and the rest of the row by zeros. Runs on the
/// calling thread.
void softmax_row(float* row, int64_t n, int64_t first, int64_t last, float scale);

/// Replaces `grad` = dL/dp by dL/ds, for weights p = softmax(scale * s). Runs on the calling thread.
/// \param weights, grad  contiguous [rows, n]; weights of invisible keys are 0
void softmax_backward_rows(const at::Tensor& weights, const at::Tensor& grad, float scale);

/// Running log-sum-exp of rows that arrive in pieces.
/// \param x  contiguous [rows, n], the next piece
/// \param maximum  [rows], starts at -infinity;
/// \param sum  [rows], starts at 0: sum of exp(x - maximum)
void accumulate_log_sum_exp(const at::Tensor& x, const at::Tensor& maximum, const at::Tensor& sum);

/// Softmax of every row in place; returns the rows' log-sum-exp.
/// \param x  contiguous [rows, n]
at::Tensor softmax_rows(const at::Tensor& x);

}  // namespace elastify::nn
