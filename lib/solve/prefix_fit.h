#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace elastify::solve {

/// A projection whose inputs can be left out, and how these inputs go together. D outputs, n inputs; on any
/// device. To fit narrowed inputs x to outputs y of the full network, let W be E[y x^T] H^-1: errors are then
/// those in W x.
struct Projection {
  at::Tensor weight;   ///< W, float64 [D, n]
  at::Tensor moments;  ///< H = X^T X / tokens + ridge, float64 [n, n], positive definite
  int64_t block = 1;   ///< consecutive inputs that stay or go together: 1 for a neuron, a KV group's columns
  int64_t n_units() const { return weight.size(1) / block; }
};

/// Adds `ridge` times the mean of the diagonal to the diagonal.
/// \returns a new tensor
at::Tensor regularised(const at::Tensor& moments, double ridge);

// Total orders of the units, most important first; every prefix of one is the set that is kept at that width.
// They do not depend on the units that inputs are measured in. O(n^3 + n^2 D) operations, nearly all in
// matrix products; memory for three or four more matrices [n, n] beside the moments. Throw Error if the
// moments are not positive definite (forward_order: their diagonal) or something is not finite.

/// Backward elimination: again and again leaves out the unit whose loss costs least when the others make up
/// for it, cost(p) = tr(W_p [(H^-1)_pp]^-1 W_p^T) with W refitted. Source: OBS; OSSCAR, arXiv:2403.12983
std::vector<int64_t> obs_order(const Projection& projection);
/// Forward selection: again and again takes the unit that explains most of what is unexplained (pivoted
/// Cholesky).
std::vector<int64_t> forward_order(const Projection& projection);
/// Both: backward elimination down to half of the units, whose order forward selection makes out of what
/// they, refitted, have to say for all. Down to half the width it keeps what obs_order() keeps.
std::vector<int64_t> hybrid_order(const Projection& projection);
/// Backward elimination without refit: again and again leaves out the unit that makes E ||W_R x_R||^2 least,
/// R all that is left out. With one column per unit that is a sum over R x R of (W^T W) times H, element by
/// element. O(n^2 D) operations and one more matrix [n, n].
std::vector<int64_t> gram_order(const Projection& projection);

/// Least-squares weights and errors of every prefix of an order, out of one factorisation P H P^T = L L^T.
class PrefixFit {
 public:
  /// \throws Error  if `order` is not one of all units, or the moments are not positive definite
  PrefixFit(const Projection& projection, std::vector<int64_t> order);

  /// E ||W x - W_k x_k||^2 of the best weights for k units, k = 0..n_units, [n_units + 1]; falls to 0. Every
  /// E is by `moments`, so it has the ridge in it.
  std::vector<double> errors() const;
  /// The same for the weights as they are, which nobody refitted.
  std::vector<double> errors_unfitted() const;
  /// Best weights of the leading k units in the order, float64 [D, k * block], columns in order.
  at::Tensor weights(int64_t k) const;
  /// weights(k) less the weights as they are.
  at::Tensor delta(int64_t k) const;
  /// The rank-r matrix B A nearest to delta(k) in what it does to inputs like X: b [D, r], a [r, k * block],
  /// both with the roots of the singular values. Of large matrices the leading subspace is found by
  /// iteration: what B A gains is then within half a percent of the most it can. The same every time.
  /// r <= D, k * block.
  struct LowRank {
    at::Tensor a, b;
    double error;  ///< E ||W x - (W_S + B A) x_k||^2, W_S: the leading weights as they are
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
