#pragma once

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "solve/prefix_fit.h"

namespace elastify::test {

inline at::Tensor index(const std::vector<int64_t>& values) {
  return at::tensor(at::ArrayRef<int64_t>(values), at::kLong);
}

/// Correlated inputs of unequal sizes, and weights on them.
/// \param ridge  as in regularised()
inline solve::Projection make_problem(int64_t seed, int64_t d, int64_t n, int64_t block = 1,
                                      double ridge = 1e-3, int64_t n_tokens = 0) {
  at::manual_seed(static_cast<uint64_t>(seed));
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor mix = at::eye(n, options) + at::randn({n, n}, options) / std::sqrt(static_cast<double>(n));
  const at::Tensor x = at::mm(at::randn({n_tokens ? n_tokens : 3 * n, n}, options), mix) *
                       at::exp(0.3 * at::randn({n}, options));
  return {at::randn({d, n}, options),
          solve::regularised(at::mm(x.t(), x) / static_cast<double>(x.size(0)), ridge), block};
}

/// The inputs of these units, unit by unit.
inline std::vector<int64_t> inputs_of(const std::vector<int64_t>& units, int64_t block) {
  std::vector<int64_t> inputs;
  for (const int64_t unit : units)
    for (int64_t i = 0; i < block; ++i) inputs.push_back(unit * block + i);
  return inputs;
}

inline std::vector<int64_t> prefix(const std::vector<int64_t>& order, int64_t k) {
  return {order.begin(), order.begin() + k};
}

/// E |W x - V x_S|^2 for weights V [D, |S|] on the inputs S.
inline double error_of(const solve::Projection& p, const std::vector<int64_t>& inputs, const at::Tensor& v) {
  at::Tensor gap = p.weight.clone();
  gap.index_add_(1, index(inputs), -v);
  return (at::mm(gap, p.moments) * gap).sum().item<double>();
}

/// The weights that solve the normal equations of the inputs S.
inline at::Tensor best_weights(const solve::Projection& p, const std::vector<int64_t>& inputs) {
  const at::Tensor columns = p.moments.index_select(1, index(inputs));
  const at::Tensor h = columns.index_select(0, index(inputs));
  return at::linalg_solve(h, at::mm(columns.t(), p.weight.t())).t();
}

inline double best_error(const solve::Projection& p, const std::vector<int64_t>& units) {
  const std::vector<int64_t> inputs = inputs_of(units, p.block);
  return error_of(p, inputs, best_weights(p, inputs));
}

inline double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

inline std::vector<int64_t> counted(int64_t n) {
  std::vector<int64_t> units(static_cast<size_t>(n));
  std::iota(units.begin(), units.end(), 0);
  return units;
}

inline bool is_order(std::vector<int64_t> order, int64_t n) {
  std::sort(order.begin(), order.end());
  return order == counted(n);
}

}  // namespace elastify::test
