#include <limits>

#include "solve/problems.h"
#include "support/errors.h"

using namespace elastify;
using namespace elastify::test;
using solve::forward_order;
using solve::obs_order;
using solve::PrefixFit;

namespace {

/// Leaves out unit after unit, each time the one with the least error of all that could go next.
/// \param error_of_units  the error when only these units are kept
template <typename ErrorOfUnits>
std::vector<int64_t> backward_by_hand(const solve::Projection& p, const ErrorOfUnits& error_of_units) {
  std::vector<int64_t> left = counted(p.n_units()), removed;
  while (!left.empty()) {
    size_t best = 0;
    double best_so_far = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < left.size(); ++i) {
      std::vector<int64_t> rest = left;
      rest.erase(rest.begin() + static_cast<int64_t>(i));
      if (const double error = error_of_units(p, rest); error < best_so_far) best = i, best_so_far = error;
    }
    removed.push_back(left[best]);
    left.erase(left.begin() + static_cast<int64_t>(best));
  }
  return {removed.rbegin(), removed.rend()};
}

/// Takes every error from the normal equations.
std::vector<int64_t> backward_by_hand(const solve::Projection& p) {
  return backward_by_hand(p, best_error);
}

double unfitted_error(const solve::Projection& p, const std::vector<int64_t>& units) {
  const std::vector<int64_t> inputs = inputs_of(units, p.block);
  return error_of(p, inputs, p.weight.index_select(1, index(inputs)));
}

/// \param left  the units to choose from
std::vector<int64_t> forward_by_hand(const solve::Projection& p, std::vector<int64_t> left) {
  std::vector<int64_t> order;
  while (!left.empty()) {
    size_t best = 0;
    double best_so_far = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < left.size(); ++i) {
      std::vector<int64_t> more = order;
      more.push_back(left[i]);
      if (const double error = best_error(p, more); error < best_so_far) best = i, best_so_far = error;
    }
    order.push_back(left[best]);
    left.erase(left.begin() + static_cast<int64_t>(best));
  }
  return order;
}

/// Goes input by input and updates the whole matrices after each. To eliminate, a is the inverse of H and y
/// is W^T; to select, a is H and y is H W^T.
/// \returns the first `steps` inputs to go
std::vector<int64_t> step_by_step(at::Tensor a, at::Tensor y, bool largest, int64_t steps) {
  std::vector<int64_t> order;
  at::Tensor gone = at::zeros({a.size(0)}, a.options());
  for (int64_t i = 0; i < steps; ++i) {
    const at::Tensor score = y.square().sum(1) / a.diagonal() * (largest ? -1 : 1) + gone;
    const int64_t p = score.argmin().item<int64_t>();
    order.push_back(p);
    const at::Tensor column = a.select(1, p) / a[p][p];
    y = y - at::outer(column, y[p]);
    a = a - at::outer(column, a[p]);
    gone[p] = std::numeric_limits<double>::infinity();
    a[p][p] = 1;
  }
  return order;
}

std::vector<int64_t> obs_step_by_step(const solve::Projection& p, int64_t steps) {
  return step_by_step(at::inverse(p.moments), p.weight.t(), false, steps);
}

std::vector<int64_t> forward_step_by_step(const solve::Projection& p, int64_t steps) {
  return step_by_step(p.moments, at::mm(p.moments, p.weight.t()), true, steps);
}

std::vector<int64_t> last_first(const std::vector<int64_t>& order, int64_t n) {
  return {order.rbegin(), order.rbegin() + n};
}

/// Second moments with eigenvalues from 1 down to 10^-decades.
solve::Projection with_spectrum(int64_t d, int64_t n, double decades) {
  at::manual_seed(5);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor q = std::get<0>(at::linalg_qr(at::randn({n, n}, options)));
  const at::Tensor eigenvalues = at::pow(10.0, at::linspace(0, -decades, n, options));
  const at::Tensor h = at::mm(q * eigenvalues, q.t());
  return {at::randn({d, n}, options), (h + h.t()) / 2};
}

}  // namespace

TEST_CASE("orders: obs removes the input that costs least, as trying each of them shows") {
  for (const int64_t seed : {1, 2, 3}) {
    const auto p = make_problem(seed, 5, 16);
    CHECK(obs_order(p) == backward_by_hand(p));
  }
}

TEST_CASE("orders: obs removes the unit of several inputs that costs least, as trying each of them shows") {
  for (const int64_t block : {2, 3, 5}) {
    const auto p = make_problem(block, 4, 6 * block, block);
    CHECK(obs_order(p) == backward_by_hand(p));
  }
}

TEST_CASE("orders: forward takes the unit that explains most, as trying each of them shows") {
  for (const int64_t seed : {1, 2, 3}) {
    const auto p = make_problem(seed, 5, 16);
    CHECK(forward_order(p) == forward_by_hand(p, counted(p.n_units())));
  }
  for (const int64_t block : {2, 3, 5}) {
    const auto p = make_problem(block, 4, 6 * block, block);
    CHECK(forward_order(p) == forward_by_hand(p, counted(p.n_units())));
  }
}

TEST_CASE("orders: hybrid goes backward to half of the units and forward within them, as trying each shows") {
  for (const int64_t block : {1, 3})
    for (const int64_t n_units : {1, 2, 9, 16}) {
      CAPTURE(block);
      CAPTURE(n_units);
      const auto p = make_problem(n_units, 5, n_units * block, block);
      const std::vector<int64_t> backward = backward_by_hand(p), order = solve::hybrid_order(p);
      const int64_t half = n_units / 2;
      CHECK(prefix(order, half) == forward_by_hand(p, prefix(backward, half)));
      CHECK(std::vector<int64_t>(order.begin() + half, order.end()) ==
            std::vector<int64_t>(backward.begin() + half, backward.end()));
    }
}

TEST_CASE("orders: updates in blocks give the order that updates after every step give") {
  const auto p = make_problem(4, 24, 400);
  CHECK(last_first(obs_order(p), 400) == obs_step_by_step(p, 400));
  CHECK(forward_order(p) == forward_step_by_step(p, 400));
}

TEST_CASE("orders: the same with more inputs than a block of updates has") {
  const auto p = make_problem(4, 24, 1300);
  CHECK(last_first(obs_order(p), 300) == obs_step_by_step(p, 300));
  CHECK(prefix(forward_order(p), 300) == forward_step_by_step(p, 300));
}

TEST_CASE("orders: gram leaves out the unit that the output misses least, as trying each of them shows") {
  for (const int64_t block : {1, 3})
    for (const int64_t seed : {1, 2, 3}) {
      CAPTURE(block);
      CAPTURE(seed);
      const auto p = make_problem(seed, 7, 12 * block, block);
      CHECK(solve::gram_order(p) == backward_by_hand(p, unfitted_error));
    }
  auto p = make_problem(1, 4, 6);
  p.moments[2][2] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(solve::gram_order(p), Error);
}

TEST_CASE("orders: rounding errors do not decide the order of second moments over nine decades") {
  for (const int64_t n : {120, 400}) {
    const auto p = with_spectrum(20, n, 9);
    CHECK(last_first(obs_order(p), n) == obs_step_by_step(p, n));
    CHECK(forward_order(p) == forward_step_by_step(p, n));
  }
}

TEST_CASE("orders: measuring inputs in other units does not change the order") {
  for (const int64_t block : {1, 4}) {
    const auto p = make_problem(7, 12, 240, block);
    const at::Tensor size = at::pow(10.0, at::linspace(-6, 6, 240, p.weight.options())).roll(77);
    const solve::Projection other{p.weight / size, p.moments * size * size.unsqueeze(1), block};
    CHECK(obs_order(other) == obs_order(p));
    CHECK(forward_order(other) == forward_order(p));
  }
}

TEST_CASE("orders: every unit is there once, and the order is the same every time") {
  for (const int64_t block : {1, 7}) {
    const auto p = make_problem(8, 6, 210, block);
    CHECK(is_order(obs_order(p), 210 / block));
    CHECK(is_order(forward_order(p), 210 / block));
    CHECK(obs_order(p) == obs_order(p));
    CHECK(forward_order(p) == forward_order(p));
  }
  const solve::Projection nothing{at::zeros({3, 0}, at::kDouble), at::zeros({0, 0}, at::kDouble)};
  CHECK(obs_order(nothing).empty());
  CHECK(forward_order(nothing).empty());
  CHECK(solve::hybrid_order(nothing).empty());
}

TEST_CASE("orders: an input that is always zero goes last") {
  for (const int64_t block : {1, 4}) {
    auto p = make_problem(9, 6, 40, block, 0);
    const at::Tensor dead = index(inputs_of({3}, block));
    p.moments.index_fill_(0, dead, 0).index_fill_(1, dead, 0);
    CHECK(gram_order(p).back() == 3);  // solves nothing and needs no ridge
    p.moments = solve::regularised(p.moments, 1e-6);
    CHECK(obs_order(p).back() == 3);
    CHECK(forward_order(p).back() == 3);
  }
}

TEST_CASE("orders: fewer tokens than inputs and a tiny ridge still give good orders") {
  for (const int64_t block : {1, 4}) {
    const auto p = make_problem(10, 6, 120, block, 1e-12, 30);
    const double all = PrefixFit(p, counted(120 / block)).errors()[0];
    for (const auto& order : {obs_order(p), forward_order(p)}) {
      REQUIRE(is_order(order, 120 / block));
      // 30 tokens are explained by 30 inputs.
      CHECK(PrefixFit(p, order).errors()[static_cast<size_t>(32 / block)] < 1e-8 * all);
    }
  }
}

TEST_CASE("orders: prefixes of obs and forward explain more than prefixes of the original order") {
  const auto p = make_problem(11, 8, 96);
  const auto as_they_come = PrefixFit(p, counted(96)).errors();
  const auto obs = PrefixFit(p, obs_order(p)).errors(), forward = PrefixFit(p, forward_order(p)).errors();
  for (const size_t k : {12, 24, 48, 72}) {
    CHECK(obs[k] < 0.9 * as_they_come[k]);
    CHECK(forward[k] < 0.9 * as_they_come[k]);
  }
}

TEST_CASE("orders: second moments that are not positive definite are refused with a way out") {
  auto p = make_problem(12, 3, 6);
  p.moments[4][4] = -1;
  CHECK(message_of([&] { obs_order(p); }) ==
        "expected positive mean squares of the inputs, got -1 for input 4");
  p.moments[4][4] = 1e-9;
  CHECK(message_of([&] { obs_order(p); }) ==
        "second moments of 6 inputs: the leading minor of order 5 is not positive");
  CHECK(hint_of([&] { obs_order(p); }) == "a larger ridge makes the second moments positive definite");
  p.weight[1][2] = std::numeric_limits<double>::quiet_NaN();
  CHECK(message_of([&] { forward_order(p); }) == "expected finite weights");
  p.weight[1][2] = 0;
  p.block = 4;
  CHECK(message_of([&] { forward_order(p); }) == "expected whole units of 4 inputs, got 6 inputs");
}
