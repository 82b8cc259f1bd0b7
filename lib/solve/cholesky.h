#pragma once

#include <ATen/core/Tensor.h>

#include "solve/projection.h"

namespace elastify::solve {

/// \param solves  also checks that no input's mean square is zero
/// \throws Error  if shapes, types or the block do not fit together, or a value is not finite
void check(const Projection& projection, bool solves = true);

/// The lower triangle L of h = L L^T.
/// \param h  float64 [n, n]
/// \throws Error  if h is not positive definite
at::Tensor lower_factor(const at::Tensor& h);

/// The rows and columns `indices` of a square matrix.
/// \param indices  int64 [m]
/// \returns a new tensor [m, m]
at::Tensor submatrix(const at::Tensor& square, const at::Tensor& indices);

}  // namespace elastify::solve
