#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "solve/projection.h"

namespace elastify::solve {

/// Adds `ridge` times the mean of the diagonal to the diagonal.
/// \returns a new tensor
at::Tensor regularised(const at::Tensor& moments, double ridge);

// Total orders of the units, most important first; the first k units of an order are kept at width k. The
// orders do not depend on the units in which inputs are measured. They take O(n^3 + n^2 D) operations, nearly
// all in matrix products, and memory for three or four [n, n] matrices besides the moments. They throw Error
// if the moments are not positive definite (forward_order: if their diagonal is not positive) or a value is
// not finite.

/// Backward elimination: repeatedly leaves out the unit whose loss costs least after the others are refitted,
/// cost(p) = tr(W_p [(H^-1)_pp]^-1 W_p^T) with the refitted W.
/// Source: OBS; OSSCAR, arXiv:2403.12983
std::vector<int64_t> obs_order(const Projection& projection);
/// Forward selection: repeatedly takes the unit that explains most of the unexplained output (pivoted
/// Cholesky).
std::vector<int64_t> forward_order(const Projection& projection);
/// Backward elimination down to half of the units, then forward selection among these with the weights that
/// are refitted to them. Down to half the width, it keeps the same units as obs_order().
std::vector<int64_t> hybrid_order(const Projection& projection);
/// Backward elimination without refit: repeatedly leaves out the unit that makes E ||W_R x_R||^2 least, where
/// R is everything left out. With one column per unit, that is the sum of (W^T W) times H, element by
/// element, over R x R. It takes O(n^2 D) operations and one more [n, n] matrix.
std::vector<int64_t> gram_order(const Projection& projection);

/// Least-squares weights and errors of every prefix of an order, from one factorisation P H P^T = L L^T.
class PrefixFit {
 public:
  /// \throws Error  if `order` is not an order of all units, or the moments are not positive definite
  PrefixFit(const Projection& projection, std::vector<int64_t> order);

  /// E ||W x - W_k x_k||^2 of the best weights for k units, k = 0..n_units, [n_units + 1]; the last one is 0.
  /// E is taken by `moments`, so it includes the ridge.
  std::vector<double> errors() const;
  /// The same for the original weights, without a refit.
  std::vector<double> errors_unfitted() const;
  /// Best weights of the leading k units in the order, float64 [D, k * block], columns in order.
  at::Tensor weights(int64_t k) const;
  /// weights(k) minus the original weights.
  at::Tensor delta(int64_t k) const;
  /// The rank-r matrix B A nearest to delta(k) in its effect on inputs like X: b [D, r], a [r, k * block].
  /// Both hold the square roots of the singular values. For large matrices the leading subspace is found by
  /// iteration; B A then gains at most half a percent less than the optimum. The result is the same every
  /// time. r is at most D and at most k * block.
  struct LowRank {
    at::Tensor a, b;
    double error;  ///< E ||W x - (W_S + B A) x_k||^2, with the original leading weights W_S
  };
  LowRank low_rank(int64_t k, int64_t rank) const;

 private:
  int64_t n_inputs(int64_t k) const;
  at::Tensor leading_factor(int64_t k) const;
  at::Tensor weighted_delta(int64_t k) const;  ///< delta(k) times leading_factor(k), [D, k * block]

  std::vector<int64_t> order_;
  int64_t block_;
  at::Tensor weight_;   ///< [D, n], columns in order
  at::Tensor factor_;   ///< L [n, n]
  at::Tensor z_norms_;  ///< squared norms of the rows of L^-1 H W^T [n]
};

}  // namespace elastify::solve
