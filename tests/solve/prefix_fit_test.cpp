#include "solve/problems.h"
#include "support/errors.h"

using namespace elastify;
using namespace elastify::test;
using solve::PrefixFit;

namespace {

std::vector<int64_t> shuffled(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[static_cast<size_t>(i)] = (i * 7 + 3) % n;
  REQUIRE(is_order(order, n));
  return order;
}

at::Tensor as_they_are(const solve::Projection& p, const std::vector<int64_t>& inputs) {
  return p.weight.index_select(1, index(inputs));
}

/// All singular values of delta(k) L_kk.
at::Tensor singular_values(const solve::Projection& p, const std::vector<int64_t>& inputs) {
  const at::Tensor h = p.moments.index_select(0, index(inputs)).index_select(1, index(inputs));
  return at::linalg_svdvals(at::mm(best_weights(p, inputs) - as_they_are(p, inputs), at::linalg_cholesky(h)));
}

}  // namespace

TEST_CASE("prefix fit: errors and weights of every width are those of the normal equations") {
  for (const int64_t block : {1, 3}) {
    const auto p = make_problem(1, 5, 30, block);
    const auto order = shuffled(p.n_units());
    const PrefixFit fit(p, order);
    const auto errors = fit.errors(), unfitted = fit.errors_unfitted();
    REQUIRE(errors.size() == order.size() + 1);
    REQUIRE(unfitted.size() == order.size() + 1);
    for (int64_t k = 0; k <= p.n_units(); ++k) {
      CAPTURE(k);
      const auto inputs = inputs_of(prefix(order, k), block);
      const at::Tensor best = best_weights(p, inputs), weights = fit.weights(k);
      const double error = error_of(p, inputs, best),
                   error_unfitted = error_of(p, inputs, as_they_are(p, inputs));
      CHECK(std::abs(errors[static_cast<size_t>(k)] - error) < 1e-10 * errors[0]);
      CHECK(std::abs(unfitted[static_cast<size_t>(k)] - error_unfitted) < 1e-10 * errors[0]);
      REQUIRE(weights.sizes() == best.sizes());
      CHECK((weights - best).norm().item<double>() < 1e-10 * (1 + best.norm().item<double>()));
      CHECK((fit.delta(k) - (best - as_they_are(p, inputs))).norm().item<double>() < 1e-9);
    }
    CHECK(errors.back() == 0);
    CHECK(unfitted.back() == 0);
    for (size_t k = 1; k < errors.size(); ++k) CHECK(errors[k] < errors[k - 1]);
  }
}

TEST_CASE("prefix fit: the same for matrices of many panels") {
  const auto p = make_problem(2, 40, 1100);
  const auto order = shuffled(1100);
  const PrefixFit fit(p, order);
  const auto errors = fit.errors(), unfitted = fit.errors_unfitted();
  for (const int64_t k : {0, 1, 300, 512, 513, 1024, 1099, 1100}) {
    CAPTURE(k);
    const auto inputs = prefix(order, k);
    const at::Tensor best = best_weights(p, inputs);
    CHECK(std::abs(errors[static_cast<size_t>(k)] - error_of(p, inputs, best)) < 1e-9 * errors[0]);
    CHECK(std::abs(unfitted[static_cast<size_t>(k)] - error_of(p, inputs, as_they_are(p, inputs))) <
          1e-9 * errors[0]);
    CHECK((fit.weights(k) - best).norm().item<double>() < 1e-9 * (1 + best.norm().item<double>()));
  }
}

TEST_CASE("prefix fit: a correction of full rank is the refit, one of lower rank is the best of its rank") {
  for (const int64_t block : {1, 3}) {
    const auto p = make_problem(3, 5, 30, block);
    const auto order = shuffled(p.n_units());
    const PrefixFit fit(p, order);
    for (const int64_t k : {4, 8}) {
      const auto inputs = inputs_of(prefix(order, k), block);
      const at::Tensor values = singular_values(p, inputs);
      const int64_t full = values.size(0);
      double before = fit.errors_unfitted()[static_cast<size_t>(k)] * (1 + 1e-12);
      for (int64_t rank = 0; rank <= full; ++rank) {
        CAPTURE(rank);
        const auto [a, b, error] = fit.low_rank(k, rank);
        REQUIRE(a.sizes() == at::IntArrayRef({rank, k * block}));
        REQUIRE(b.sizes() == at::IntArrayRef({5, rank}));
        const double direct = error_of(p, inputs, as_they_are(p, inputs) + at::mm(b, a));
        CHECK(error == doctest::Approx(direct).epsilon(1e-10));
        const double tail = values.narrow(0, rank, full - rank).square().sum().item<double>();
        CHECK(error == doctest::Approx(fit.errors()[static_cast<size_t>(k)] + tail).epsilon(1e-10));
        CHECK(error < before);
        before = error;
        if (rank == full) CHECK(relative(as_they_are(p, inputs) + at::mm(b, a), fit.weights(k)) < 1e-10);
      }
    }
    CHECK(message_of([&] { fit.low_rank(4, 8); }).find("expected a rank of 0 to") == 0);
  }
}

TEST_CASE("prefix fit: with many outputs a correction is within half a percent of the best of its rank") {
  const auto p = make_problem(4, 1024, 1500);
  const auto order = shuffled(1500);
  const PrefixFit fit(p, order);
  const auto inputs = prefix(order, 750);
  const at::Tensor values = singular_values(p, inputs);
  for (const int64_t rank : {1, 8, 32}) {
    CAPTURE(rank);
    const auto [a, b, error] = fit.low_rank(750, rank);
    const double direct = error_of(p, inputs, as_they_are(p, inputs) + at::mm(b, a));
    CHECK(error == doctest::Approx(direct).epsilon(1e-10));
    const double gain = fit.errors_unfitted()[750] - error;
    const double best_gain = values.narrow(0, 0, rank).square().sum().item<double>();
    CHECK(gain <= best_gain * (1 + 1e-9));
    CHECK(gain >= best_gain * 0.995);
    const auto again = fit.low_rank(750, rank);
    CHECK(at::equal(again.a, a));
    CHECK(at::equal(again.b, b));
  }
}

TEST_CASE("prefix fit: weights that no refit changes get an empty correction") {
  auto p = make_problem(5, 6, 12);
  p.moments = at::diag(p.moments.diagonal());
  const PrefixFit fit(p, counted(12));
  CHECK(fit.delta(5).abs().max().item<double>() == 0);
  const auto [a, b, error] = fit.low_rank(5, 2);
  CHECK(at::mm(b, a).abs().max().item<double>() == 0);
  CHECK(error == doctest::Approx(fit.errors()[5]));
}

TEST_CASE("prefix fit: invalid orders and second moments that are not positive definite are refused") {
  auto p = make_problem(6, 3, 6);
  CHECK(message_of([&] {
          PrefixFit(p, {0, 1, 2, 3, 4, 4});
        }) == "expected an order of 6 units, got unit 4 twice or out of range");
  CHECK(message_of([&] { PrefixFit(p, {0, 1}); }) == "expected an order of 6 units, got 2");
  CHECK(message_of([&] { PrefixFit(p, counted(6)).weights(7); }) == "expected 0 to 6 units, got 7");
  p.moments[2][2] = 1e-9;
  CHECK(message_of([&] { PrefixFit(p, counted(6)); }) ==
        "second moments of 6 inputs: the leading minor of order 3 is not positive");
  p.weight = p.weight.to(at::kFloat);
  CHECK(message_of([&] { PrefixFit(p, counted(6)); }).find("float64") != std::string::npos);
}

TEST_CASE("prefix fit: a ridge is a share of the mean of the diagonal") {
  const at::Tensor moments = at::diag(at::tensor({1.0, 2.0, 6.0}, at::kDouble));
  const at::Tensor h = solve::regularised(moments, 0.1);
  CHECK(at::allclose(h, at::diag(at::tensor({1.3, 2.3, 6.3}, at::kDouble))));
  CHECK(moments[0][0].item<double>() == 1);
}
