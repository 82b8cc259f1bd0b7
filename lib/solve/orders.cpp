#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "solve/cholesky.h"
#include "solve/prefix_fit.h"

// Backward elimination and forward selection are one recursion. With K the inverse of H over the inputs that
// are left and B the weights refitted to them, dropping p takes
//     K -> K - K_p K_p^T / K_pp,    B -> B - B_p K_p^T / K_pp    and costs |B_p|^2 / K_pp;
// with A the covariance of the inputs not taken yet, less what the taken ones explain, and Y = A W^T, taking
// p does
//     A -> A - A_p A_p^T / A_pp,    Y^T -> Y^T - Y_p A_p^T / A_pp    and gains |Y_p|^2 / A_pp.
// Both need only the norms of the columns of B or Y^T, so the Gram matrix of these stands in for them. Below,
// `a` is K or A, and `gram` is B^T B or Y Y^T:
//     gram -> gram - c g^T - g c^T + gram_pp c c^T  =  gram - v u^T - u v^T
// with c = a_p / a_pp, g = gram_p, v = a_p / sqrt(a_pp), u = (g - gram_pp c / 2) / sqrt(a_pp).

namespace elastify::solve {
namespace {

constexpr int64_t kHistory = 128;  ///< most steps before both matrices are brought up to date
/// The Gram matrix is computed anew from `a` when it has shrunk by this factor. It holds squares, so its own
/// rounding errors swamp it earlier than those of `a` would. Its size is taken relative to the original mean
/// squares of the inputs.
constexpr double kShrunk = 1e-4;
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Elimination {
  at::Tensor a, gram;  ///< [n, n]
  bool largest;        ///< whether the largest score goes first, or the smallest
  /// Computes gram from `a` over the inputs that are left; empty if gram does not shrink.
  /// \param inputs  int64 [m]
  std::function<at::Tensor(const at::Tensor& a, const at::Tensor& inputs)> make_gram;
};

/// Returns single inputs in the order in which they go. A step needs one row of each matrix. It is computed
/// from the matrices as they were up to kHistory steps ago and the vectors v, u of the steps since, so that
/// the matrices are read and written only by matrix products. Nothing waits for the device within such a
/// block.
std::vector<int64_t> eliminate_inputs(Elimination e) {
  const auto options = e.a.options();
  const double sign = e.largest ? -1 : 1;
  const int64_t n = e.a.size(0);
  // Differences below this are rounding errors.
  at::Tensor least = e.a.diagonal() * (8 * kEpsilon);
  at::Tensor inputs = at::arange(n, options.dtype(at::kLong));  // the inputs behind the rows of both matrices
  at::Tensor gone = at::zeros({n}, options);                    // infinite for rows of inputs that have gone
  at::Tensor history = at::empty({kHistory, 2, n}, options);    // v, u of each step
  std::vector<at::Tensor> order;
  double magnitude = e.make_gram ? (e.gram.diagonal() / least).max().item<double>() : 0;
  for (int64_t n_left = n; n_left > 0;) {
    // Blocks get shorter near the end, where each step takes away more of both matrices.
    const int64_t n_rows = e.a.size(0), n_steps = std::min(kHistory, std::max<int64_t>(n_left / 8, 1));
    at::Tensor a_diagonal = at::maximum(e.a.diagonal(), least), gram_diagonal = e.gram.diagonal().clone();
    for (int64_t step = 0; step < n_steps; ++step) {
      const at::Tensor score = gram_diagonal.clamp_min(0).div_(a_diagonal).mul_(sign).add_(gone);
      const at::Tensor pivot = score.argmin(0, true);
      gone.index_fill_(0, pivot, kInfinity);
      order.push_back(inputs.index_select(0, pivot));

      at::Tensor row = e.a.index_select(0, pivot).squeeze(0);
      at::Tensor gram_row = e.gram.index_select(0, pivot).squeeze(0);
      if (step > 0) {
        const at::Tensor past = history.narrow(0, 0, step);
        const at::Tensor at_pivot = past.index_select(2, pivot).squeeze(2);
        row.addmv_(past.select(1, 0).t(), at_pivot.select(1, 0), 1, -1);
        gram_row.addmv_(past.view({2 * step, n_rows}).t(), at_pivot.flip(1).reshape(-1), 1, -1);
      }
      const at::Tensor variance = a_diagonal.index_select(0, pivot);
      const at::Tensor scale = variance.rsqrt();
      at::Tensor v = history[step][0], u = history[step][1];
      at::mul_out(v, row, scale);
      at::mul_out(u, gram_row, scale);
      u.sub_(v * (gram_diagonal.index_select(0, pivot) / variance / 2));
      a_diagonal.addcmul_(v, v, -1);
      a_diagonal = at::maximum(a_diagonal, least);
      gram_diagonal.addcmul_(v, u, -2);
    }
    n_left -= n_steps;
    if (n_left == 0) break;

    const at::Tensor past = history.narrow(0, 0, n_steps);
    const at::Tensor v = past.select(1, 0);
    e.a.addmm_(v.t(), v, 1, -1);
    const at::Tensor pairs = past.view({2 * n_steps, n_rows});
    const bool renew = e.make_gram && at::where(gone == 0, gram_diagonal / least, 0.0).max().item<double>() <
                                          kShrunk * magnitude;
    if (!renew) e.gram.addmm_(pairs.t(), past.flip(1).view({2 * n_steps, n_rows}), 1, -1);

    if (renew || 8 * n_left <= 7 * n_rows) {
      const at::Tensor left = (gone == 0).nonzero().squeeze(1);
      e.a = submatrix(e.a, left);
      inputs = inputs.index_select(0, left);
      least = least.index_select(0, left);
      gone = at::zeros({n_left}, options);
      history = at::empty({kHistory, 2, n_left}, options);
      if (renew) {
        e.gram = at::Tensor();
        e.gram = e.make_gram(e.a, inputs);
        magnitude = (e.gram.diagonal() / least).max().item<double>();
      } else {
        e.gram = submatrix(e.gram, left);
      }
    }
  }
  const at::Tensor all = at::cat(order).cpu();
  return {all.data_ptr<int64_t>(), all.data_ptr<int64_t>() + n};
}

/// The blocks on the diagonal.
/// \returns [n / block, block, block]
at::Tensor diagonal_blocks(const at::Tensor& square, int64_t block) {
  const int64_t n_units = square.size(0) / block;
  return square.view({n_units, block, n_units, block}).diagonal(0, 0, 2).permute({2, 0, 1}).contiguous();
}

/// Cholesky factors of blocks that are positive definite but for rounding errors.
/// \param diagonal  [n_units, block], the diagonals of the blocks before anything was subtracted
at::Tensor factors(const at::Tensor& blocks, const at::Tensor& diagonal) {
  for (double shift = 0; shift < 1; shift = std::max(8 * kEpsilon, shift * 64)) {
    const auto [factor, info] = at::linalg_cholesky_ex(blocks + at::diag_embed(diagonal * shift));
    if (info.max().item<int>() == 0) return factor;
  }
  fail("second moments are not positive definite");
}

/// Returns units of several inputs in the order in which they go. There are few units, and each step is a
/// product with matrices of its own, so steps are not collected.
std::vector<int64_t> eliminate_units(Elimination e, int64_t block) {
  const auto indices = e.a.options().dtype(at::kLong);
  at::Tensor inputs = at::arange(e.a.size(0), indices);
  at::Tensor diagonal = e.a.diagonal().clone();
  std::vector<int64_t> order, units(static_cast<size_t>(e.a.size(0) / block));
  std::iota(units.begin(), units.end(), 0);
  const auto size_of_gram = [&] { return (e.gram.diagonal() / diagonal).max().item<double>(); };
  double magnitude = e.make_gram ? size_of_gram() : 0;
  while (!units.empty()) {
    const at::Tensor factor = factors(diagonal_blocks(e.a, block), diagonal.view({-1, block}));
    const at::Tensor score = (at::cholesky_inverse(factor) * diagonal_blocks(e.gram, block)).sum({1, 2});
    const int64_t unit = (e.largest ? score.argmax() : score.argmin()).item<int64_t>();
    order.push_back(units[static_cast<size_t>(unit)]);
    units.erase(units.begin() + unit);

    const int64_t first = unit * block, n = e.a.size(0);
    const at::Tensor left = at::cat({at::arange(first, indices), at::arange(first + block, n, indices)});
    const at::Tensor v =
        at::linalg_solve_triangular(factor[unit], e.a.narrow(0, first, block).index_select(1, left), false);
    const at::Tensor c = at::linalg_solve_triangular(factor[unit].t(), v, true);
    const at::Tensor g = e.gram.narrow(0, first, block).index_select(1, left);
    const at::Tensor u = at::addmm(g, e.gram.narrow(0, first, block).narrow(1, first, block), c, 1, -0.5);
    e.a = submatrix(e.a, left).addmm_(v.t(), v, 1, -1);
    e.gram = submatrix(e.gram, left).addmm_(c.t(), u, 1, -1).addmm_(u.t(), c, 1, -1);
    inputs = inputs.index_select(0, left);
    diagonal = diagonal.index_select(0, left);
    if (e.make_gram && !units.empty() && size_of_gram() < kShrunk * magnitude) {
      e.gram = e.make_gram(e.a, inputs);
      magnitude = size_of_gram();
    }
  }
  return order;
}

std::vector<int64_t> eliminate(Elimination e, int64_t block) {
  if (e.a.size(0) == 0) return {};
  return block == 1 ? eliminate_inputs(std::move(e)) : eliminate_units(std::move(e), block);
}

}  // namespace

std::vector<int64_t> obs_order(const Projection& projection) {
  const c10::NoGradGuard no_grad;
  check(projection);
  const at::Tensor& w = projection.weight;
  // The inverse is symmetric, so if it is not contiguous, its transpose serves as well.
  at::Tensor inverse = at::cholesky_inverse(lower_factor(projection.moments));
  if (!inverse.is_contiguous()) inverse = inverse.t().contiguous();
  std::vector<int64_t> order = eliminate({std::move(inverse), at::mm(w.t(), w), false, {}}, projection.block);
  std::reverse(order.begin(), order.end());
  return order;
}

std::vector<int64_t> forward_order(const Projection& projection) {
  const c10::NoGradGuard no_grad;
  check(projection);
  const at::Tensor& h = projection.moments;
  const auto make_gram = [&](const at::Tensor& a, const at::Tensor& inputs) {
    const at::Tensor y = at::mm(a, projection.weight.index_select(1, inputs).t());
    return at::mm(y, y.t());
  };
  at::Tensor gram = make_gram(h, at::arange(h.size(0), h.options().dtype(at::kLong)));
  return eliminate({h.clone(at::MemoryFormat::Contiguous), std::move(gram), true, make_gram},
                   projection.block);
}

std::vector<int64_t> hybrid_order(const Projection& projection) {
  const c10::NoGradGuard no_grad;
  std::vector<int64_t> order = obs_order(projection);
  const int64_t n_half = projection.n_units() / 2;
  if (n_half == 0) return order;
  const auto indices = projection.moments.options().dtype(at::kLong);
  const std::vector<int64_t> half(order.begin(), order.begin() + n_half);
  const at::Tensor first_inputs = at::tensor(half, at::kLong).to(indices.device()) * projection.block;
  const at::Tensor inputs = (first_inputs.unsqueeze(1) + at::arange(projection.block, indices)).flatten();
  const std::vector<int64_t> within = forward_order({.weight = PrefixFit(projection, order).weights(n_half),
                                                     .moments = submatrix(projection.moments, inputs),
                                                     .block = projection.block});
  for (size_t i = 0; i < within.size(); ++i) order[i] = half[static_cast<size_t>(within[i])];
  return order;
}

std::vector<int64_t> gram_order(const Projection& projection) {
  check(projection, false);
  const int64_t n_units = projection.n_units(), block = projection.block;
  const at::Tensor products = (at::mm(projection.weight.t(), projection.weight) * projection.moments)
                                  .view({n_units, block, n_units, block})
                                  .sum(at::IntArrayRef({1, 3}))
                                  .to(at::kCPU)
                                  .contiguous();
  const double* const product = products.data_ptr<double>();
  const auto n = static_cast<size_t>(n_units);
  std::vector<double> cost(n);
  for (size_t i = 0; i < n; ++i) cost[i] = product[i * n + i];
  std::vector<bool> gone(n, false);
  std::vector<int64_t> order(n);
  for (size_t left = n; left-- > 0;) {
    size_t cheapest = n;
    for (size_t i = 0; i < n; ++i)
      if (!gone[i] && (cheapest == n || cost[i] < cost[cheapest])) cheapest = i;
    gone[cheapest] = true;
    order[left] = static_cast<int64_t>(cheapest);
    for (size_t i = 0; i < n; ++i) cost[i] += 2 * product[cheapest * n + i];
  }
  return order;
}

}  // namespace elastify::solve
