#include "solve/cholesky.h"

#include <torch/torch.h>

#include <cmath>
#include <utility>

#include "base/error.h"

namespace elastify::solve {

constexpr const char* kRidgeHint = "a larger ridge makes the second moments positive definite";

void check(const Projection& projection, bool solves) {
  const at::Tensor &w = projection.weight, &h = projection.moments;
  if (w.dim() != 2 || h.dim() != 2) fail("expected two matrices, got {} and {} axes", w.dim(), h.dim());
  if (w.scalar_type() != at::kDouble || h.scalar_type() != at::kDouble)
    fail("expected weights and second moments in float64, got {} and {}", c10::toString(w.scalar_type()),
         c10::toString(h.scalar_type()));
  const int64_t n = w.size(1);
  if (h.size(0) != n || h.size(1) != n)
    fail("expected second moments of {} inputs, got [{}, {}]", n, h.size(0), h.size(1));
  // A sum is finite only if all its terms are.
  for (const auto& [name, x] : {std::pair("weights", w), std::pair("second moments", h)})
    if (!std::isfinite(x.sum().item<double>())) fail("expected finite {}", name);
  if (projection.block < 1 || n % projection.block != 0)
    fail("expected whole units of {} inputs, got {} inputs", projection.block, n);
  if (solves && n > 0 && !(h.diagonal().min().item<double>() > 0))
    throw Error(fmt::format("expected positive mean squares of the inputs, got {} for input {}",
                            h.diagonal().min().item<double>(), h.diagonal().argmin().item<int64_t>()),
                kRidgeHint);
}

at::Tensor lower_factor(const at::Tensor& h) {
  const auto [factor, info] = at::linalg_cholesky_ex(h);
  if (const int minor = info.item<int>(); minor != 0)
    throw Error(fmt::format("second moments of {} inputs: the leading minor of order {} is not positive",
                            h.size(0), minor),
                kRidgeHint);
  return factor;
}

at::Tensor submatrix(const at::Tensor& square, const at::Tensor& indices) {
  return square.index({indices.unsqueeze(1), indices});
}

at::Tensor regularised(const at::Tensor& moments, double ridge) {
  const c10::NoGradGuard no_grad;
  at::Tensor h = moments.clone();
  h.diagonal().add_(moments.diagonal().mean() * ridge);
  return h;
}

}  // namespace elastify::solve
