#pragma once

#include <string>

#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/profile.h"

namespace elastify::solve {

/// Orders the units of every space by `obs`, `forward`, `hybrid` or `gram`, space by space.
/// \param moments  X^T X of the inputs of o and down, summed over `n_tokens`
/// \param ridge    added to the moments' diagonal, in units of its mean; ignored for `gram`, which needs none
/// \param device   where to solve, in float64: "cpu", "cuda", "cuda:1"
/// \throws Error   naming the space whose moments cannot be used
Permutation rank_by_moments(const Checkpoint& checkpoint, const MomentSource& moments, int64_t n_tokens,
                            Metric metric, double ridge, const std::string& device = "cpu");

/// Error of the output of o or down, E ||W x - W_k x_k||^2 per token, when the leading k units of an order
/// are kept, k = 0..n_units.
struct PrefixErrors {
  std::vector<double> unfitted;  ///< with the original weights
  std::vector<double> fitted;    ///< with the best weights for these units
};
/// Errors of every space; arguments as above.
/// \returns [spaces]
std::vector<PrefixErrors> prefix_errors(const Checkpoint& checkpoint, const MomentSource& moments,
                                        int64_t n_tokens, const Permutation& permutation, double ridge,
                                        const std::string& device = "cpu");

}  // namespace elastify::solve
