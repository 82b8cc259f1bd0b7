#pragma once

#include <string>

#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/profile.h"

namespace elastify::solve {

/// Orders the units of every space by `obs`, `forward`, `hybrid` or `gram`, space by space.
/// \param moments  X^T X over `n_tokens` of what goes into o and down
/// \param ridge    added to the moments' diagonal, in units of its mean; `gram` needs none and takes none
/// \param device   that solves, in float64: "cpu", "cuda", "cuda:1"
/// \throws Error   naming the space whose moments do not do
Permutation rank_by_moments(const Checkpoint& checkpoint, const MomentSource& moments, int64_t n_tokens,
                            Metric metric, double ridge, const std::string& device = "cpu");

/// What the output of o or down is off, E ||W x - W_k x_k||^2 per token, when the leading k units of an order
/// are kept, k = 0..n_units.
struct PrefixErrors {
  std::vector<double> unfitted;  ///< with the weights as they are
  std::vector<double> fitted;    ///< with the best weights for these units
};
/// Of every space. Arguments as above.
/// \returns [spaces]
std::vector<PrefixErrors> prefix_errors(const Checkpoint& checkpoint, const MomentSource& moments,
                                        int64_t n_tokens, const Permutation& permutation, double ridge,
                                        const std::string& device = "cpu");

}  // namespace elastify::solve
