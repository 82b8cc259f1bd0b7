#include "solve/prefix_fit.h"

#include <torch/torch.h>

#include <algorithm>

#include "base/error.h"
#include "solve/cholesky.h"

// With S the leading inputs, R the rest and H = L L^T in order:
//     Z = L^-1 H W^T = L^T W^T,    errors()[k] = sum of |Z_i|^2 over i in R,
//     W_k - W_S = W_R H_RS H_SS^-1 = W_R L_RS L_SS^-1,
// so the change by the refit, times L_SS, is a product of two parts that exist already.

namespace elastify::solve {
namespace {

constexpr int64_t kPanel = 512;      ///< rows of a triangular matrix per product
constexpr int64_t kSmallGram = 256;  ///< up to this size, all eigenvectors are cheap
constexpr int64_t kPowerIterations = 12;

/// Calls f(first, n_rows) for every panel of rows.
template <typename F>
void for_panels(int64_t n, F&& f) {
  for (int64_t first = 0; first < n; first += kPanel) f(first, std::min(kPanel, n - first));
}

/// Returns x[i] + x[i + 1] + ... for the first input i of every block, and 0 at the end.
/// \param x  [n]
std::vector<double> sums_from(const at::Tensor& x, int64_t block) {
  const at::Tensor per_unit = x.view({-1, block}).sum(1).flip(0).cumsum(0).flip(0).cpu().contiguous();
  std::vector<double> sums(per_unit.data_ptr<double>(), per_unit.data_ptr<double>() + per_unit.numel());
  sums.push_back(0);
  return sums;
}

/// Returns orthonormal columns that span the leading left singular vectors.
/// \param x  [m, n]
/// \returns [m, rank]
at::Tensor leading_vectors(const at::Tensor& x, int64_t rank) {
  const int64_t m = x.size(0), n = x.size(1);
  const int64_t n_columns = rank + std::max<int64_t>(16, rank / 2);
  const auto leading = [rank](const at::Tensor& gram) {
    const at::Tensor vectors = std::get<1>(at::linalg_eigh(gram));
    return vectors.narrow(1, vectors.size(1) - rank, rank).flip(1);
  };
  if (m <= std::max(kSmallGram, 3 * n_columns)) return leading(at::mm(x, x.t()));
  // Large matrices: subspace iteration from a fixed start.
  const at::Generator generator = at::detail::createCPUGenerator(1);
  at::Tensor q = at::randn({n, std::min(n_columns, n)}, generator, at::TensorOptions().dtype(at::kDouble));
  q = q.to(x.device());
  for (int64_t i = 0; i <= kPowerIterations; ++i) {
    q = std::get<0>(at::linalg_qr(at::mm(x, q)));
    if (i < kPowerIterations) q = at::mm(x.t(), q);
  }
  const at::Tensor y = at::mm(q.t(), x);
  return at::mm(q, leading(at::mm(y, y.t())));
}

}  // namespace

PrefixFit::PrefixFit(const Projection& projection, std::vector<int64_t> order)
    : order_(std::move(order)), block_(projection.block) {
  const c10::NoGradGuard no_grad;
  check(projection);
  const int64_t n = projection.weight.size(1), n_units = projection.n_units();
  std::vector<bool> seen(static_cast<size_t>(n_units));
  for (const int64_t unit : order_) {
    if (unit < 0 || unit >= n_units || seen[static_cast<size_t>(unit)])
      fail("expected an order of {} units, got unit {} twice or out of range", n_units, unit);
    seen[static_cast<size_t>(unit)] = true;
  }
  if (static_cast<int64_t>(order_.size()) != n_units)
    fail("expected an order of {} units, got {}", n_units, order_.size());

  const auto device = projection.weight.device();
  const at::Tensor columns =
      (at::tensor(order_, at::kLong).unsqueeze(1) * block_ + at::arange(block_, at::kLong))
          .reshape(-1)
          .to(device);
  weight_ = projection.weight.index_select(1, columns);
  factor_ = lower_factor(submatrix(projection.moments, columns));
  z_norms_ = at::empty({n}, weight_.options());
  for_panels(n, [&](int64_t first, int64_t rows) {
    const at::Tensor below = factor_.narrow(0, first, n - first).narrow(1, first, rows);
    const at::Tensor z = at::mm(weight_.narrow(1, first, n - first), below);
    z_norms_.narrow(0, first, rows).copy_(z.square().sum(0));
  });
}

std::vector<double> PrefixFit::errors() const {
  const c10::NoGradGuard no_grad;
  return sums_from(z_norms_, block_);
}

std::vector<double> PrefixFit::errors_unfitted() const {
  const c10::NoGradGuard no_grad;
  const int64_t n = weight_.size(1);
  // The error of leaving out R is the sum of H_ij W_i . W_j over i, j in R. Input i adds the terms with j >=
  // i.
  at::Tensor terms = at::empty({n}, weight_.options());
  for_panels(n, [&](int64_t first, int64_t rows) {
    const int64_t end = first + rows;
    const at::Tensor w = weight_.narrow(1, first, n - first);
    const at::Tensor l = factor_.narrow(0, first, n - first).narrow(1, 0, end);
    const at::Tensor h = at::mm(l.narrow(0, 0, rows), l.t());
    h.mul_(at::mm(w.narrow(1, 0, rows).t(), w));
    terms.narrow(0, first, rows).copy_(h.triu(1).sum(1).mul_(2).add_(h.diagonal()));
  });
  return sums_from(terms, block_);
}

int64_t PrefixFit::n_inputs(int64_t k) const {
  const auto n_units = static_cast<int64_t>(order_.size());
  if (k < 0 || k > n_units) fail("expected 0 to {} units, got {}", n_units, k);
  return k * block_;
}

at::Tensor PrefixFit::weighted_delta(int64_t k) const {
  const int64_t n_kept = n_inputs(k), n_rest = weight_.size(1) - n_kept;
  return at::mm(weight_.narrow(1, n_kept, n_rest), factor_.narrow(0, n_kept, n_rest).narrow(1, 0, n_kept));
}

at::Tensor PrefixFit::leading_factor(int64_t k) const {
  return factor_.narrow(0, 0, n_inputs(k)).narrow(1, 0, n_inputs(k));
}

at::Tensor PrefixFit::delta(int64_t k) const {
  const c10::NoGradGuard no_grad;
  return at::linalg_solve_triangular(leading_factor(k), weighted_delta(k), /*upper=*/false, /*left=*/false);
}

at::Tensor PrefixFit::weights(int64_t k) const {
  const c10::NoGradGuard no_grad;
  return delta(k) + weight_.narrow(1, 0, n_inputs(k));
}

PrefixFit::LowRank PrefixFit::low_rank(int64_t k, int64_t rank) const {
  const c10::NoGradGuard no_grad;
  const at::Tensor x = weighted_delta(k);
  if (rank < 0 || rank > std::min(x.size(0), x.size(1)))
    fail("expected a rank of 0 to {}, got {}", std::min(x.size(0), x.size(1)), rank);
  const at::Tensor vectors = leading_vectors(x, rank);
  const at::Tensor y = at::mm(vectors.t(), x);
  const double left_over = at::addmm(x, vectors, y, 1, -1).square().sum().item<double>();
  const at::Tensor root = y.square().sum(1).pow(0.25);  // square roots of the singular values
  const at::Tensor inverse = at::where(root > 0, root.reciprocal(), 0.0);
  return {at::linalg_solve_triangular(leading_factor(k), y * inverse.unsqueeze(1), false, false),
          vectors * root, errors()[static_cast<size_t>(k)] + left_over};
}

}  // namespace elastify::solve
