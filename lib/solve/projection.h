#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace elastify::solve {

/// A projection with D outputs and n inputs, on any device, and the blocks in which its inputs can be left
/// out. To fit narrowed inputs x to outputs y of the full network, set W to E[y x^T] H^-1; errors are then
/// those in W x.
struct Projection {
  at::Tensor weight;   ///< W, float64 [D, n]
  at::Tensor moments;  ///< H = X^T X / tokens + ridge, float64 [n, n], positive definite
  int64_t block = 1;   ///< consecutive inputs that stay or go together: 1 for a neuron, a KV group's columns
  int64_t n_units() const { return weight.size(1) / block; }
};

}  // namespace elastify::solve
