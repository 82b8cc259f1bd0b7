#include "recover/regression.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "recover/hold_out.h"
#include "support/decoders.h"

using namespace elastify;

namespace {

constexpr int64_t kInputs = 12, kOutputs = 16, kRows = 400;

/// A narrowed projection whose targets include contributions that its weights do not compute.
struct Problem {
  at::Tensor inputs, targets, weight, root;
  recover::Sample sample{kInputs, kOutputs, 1, options(Compensation::kBaked)};

  Problem() {
    torch::manual_seed(3);
    inputs = at::randn({kRows, kInputs}) * at::linspace(0.2, 2, kInputs);
    weight = at::randn({kOutputs, kInputs});
    targets = at::mm(inputs, (weight + 0.5 * at::randn({kOutputs, kInputs})).t()) +
              0.3 * at::randn({kRows, kOutputs});
    // In this metric, some outputs count ten times as much as others, and outputs are correlated.
    root = (at::randn({kOutputs, kOutputs}, at::kDouble).tril(-1) * 0.3 +
            at::diag(at::linspace(0.5, 5, kOutputs, at::kDouble)));
    sample.add(0, inputs, targets, at::ones({kRows, 1}));
  }

  static recover::ClosedFormOptions options(Compensation compensation) {
    recover::ClosedFormOptions options;
    options.compensation = compensation;
    options.ridge = 1e-9;
    return options;
  }

  nn::TensorRepair repair(Compensation compensation, int64_t rank, const at::Tensor& metric) const {
    return sample.repair(weight, options(compensation), rank, metric).repair;
  }

  /// Mean squared error after the repair, in the metric of `root` (undefined: Euclidean).
  double error(const nn::TensorRepair& repair, const at::Tensor& metric) const {
    at::Tensor used = repair.weight.defined() ? repair.weight : weight;
    if (repair.a.defined()) used = used + at::mm(repair.b, repair.a);
    at::Tensor left = (targets - at::mm(inputs, used.t())).to(at::kDouble);
    if (metric.defined()) left = at::mm(left, metric);
    return left.square().sum().item<double>() / kRows;
  }
};

}  // namespace

TEST_CASE("regression: an adapter is the best of its rank in the metric that it is fitted in") {
  const Problem problem;
  for (const int64_t rank : {1, 3, 6}) {
    CAPTURE(rank);
    const auto plain = problem.repair(Compensation::kAdapter, rank, {});
    const auto metric = problem.repair(Compensation::kAdapter, rank, problem.root);
    CHECK(metric.a.size(0) == rank);
    CHECK(problem.error(metric, problem.root) < 0.98 * problem.error(plain, problem.root));
    CHECK(problem.error(plain, {}) < 0.98 * problem.error(metric, {}));
    // Random small changes do not lower the error.
    for (uint64_t seed = 0; seed < 20; ++seed) {
      torch::manual_seed(seed);
      nn::TensorRepair moved = metric;
      moved.a = metric.a + 0.01 * at::randn_like(metric.a);
      moved.b = metric.b + 0.01 * at::randn_like(metric.b);
      CHECK(problem.error(moved, problem.root) > problem.error(metric, problem.root));
    }
  }
}

TEST_CASE("regression: every rank takes off the error what was said of it") {
  const Problem problem;
  for (const at::Tensor& metric : {at::Tensor(), problem.root}) {
    CAPTURE(metric.defined());
    const at::Tensor gains =
        problem.sample.gains(problem.weight, Problem::options(Compensation::kAdapter), metric);
    REQUIRE(gains.size(0) == kInputs);
    double error = problem.error({}, metric);
    for (int64_t rank = 1; rank <= kInputs; ++rank) {
      CAPTURE(rank);
      const double left = problem.error(problem.repair(Compensation::kAdapter, rank, metric), metric);
      CHECK(error - left == doctest::Approx(gains[rank - 1].item<double>()).epsilon(0.01));
      error = left;
    }
    CHECK(error == doctest::Approx(problem.error(problem.repair(Compensation::kBaked, 0, metric), metric))
                       .epsilon(1e-4));
  }
}

TEST_CASE("regression: the sums of leading inputs are those of the inputs alone") {
  const Problem problem;
  constexpr int64_t kLeading = 5;
  recover::Sample alone(kLeading, kOutputs, 1, Problem::options(Compensation::kBaked));
  alone.add(0, problem.inputs.narrow(1, 0, kLeading), problem.targets, at::ones({kRows, 1}));
  const at::Tensor weight = problem.weight.narrow(1, 0, kLeading);
  const auto options = Problem::options(Compensation::kAdapter);
  CHECK(at::allclose(problem.sample.gains(weight, options, problem.root),
                     alone.gains(weight, options, problem.root)));
}

TEST_CASE("regression: a bias by itself makes up for what the weights miss on average") {
  const Problem problem;
  const auto options = Problem::options(Compensation::kBias);
  const at::Tensor weights = at::rand({kRows, 1}), inputs = problem.inputs + 1;
  for (const size_t n_batches : {1, 2}) {  // one of two would be held out, but not for a bias alone
    CAPTURE(n_batches);
    recover::Sample sample(kInputs, kOutputs, n_batches, options);
    const auto n = static_cast<int64_t>(kRows / n_batches);
    for (size_t b = 0; b < n_batches; ++b) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, static_cast<int64_t>(b) * n, n); };
      sample.add(b, part(inputs), part(problem.targets), part(weights));
    }
    const auto repair = sample.repair(problem.weight, options, 0, {}).repair;
    CHECK(!repair.weight.defined());
    CHECK(!repair.a.defined());
    const at::Tensor missed = problem.targets - at::mm(inputs, problem.weight.t());
    CHECK(at::allclose(repair.bias, (missed * weights).sum(0) / weights.sum(), 1e-4, 1e-5));
  }
}

TEST_CASE("regression: what was held out for the ridge is not there when the ridge is chosen again") {
  for (const size_t n_batches : {2, 5}) {
    CAPTURE(n_batches);
    torch::manual_seed(4);
    auto options = Problem::options(Compensation::kBaked);
    options.ridge = 0;
    recover::Sample sample(kInputs, kOutputs, n_batches, options);
    const at::Tensor weight = at::zeros({kOutputs, kInputs});
    for (size_t batch = 0; batch < n_batches; ++batch)  // too few rows for a good fit
      sample.add(batch, at::randn({5, kInputs}), at::randn({5, kOutputs}), at::ones({5, 1}));
    const auto repair = [&] { return sample.repair(weight, options, 0, {}).repair.weight; };
    const at::Tensor first = repair(), gains = sample.gains(weight, options, {});
    CHECK(at::equal(repair(), first));
    CHECK(at::equal(sample.gains(weight, options, {}), gains));
    // The targets are noise, so the largest ridge is chosen.
    options.ridge = 10;
    CHECK(at::equal(repair(), first));
  }
}

TEST_CASE("regression: every fifth part is held out, of fewer the last, of one none") {
  const auto held_out = [](size_t n) {
    std::vector<size_t> parts;
    for (size_t i = 0; i < n; ++i)
      if (recover::is_held_out(i, n)) parts.push_back(i);
    return parts;
  };
  CHECK(held_out(1).empty());
  CHECK(held_out(2) == std::vector<size_t>{1});
  CHECK(held_out(4) == std::vector<size_t>{3});
  CHECK(held_out(5) == std::vector<size_t>{4});
  CHECK(held_out(11) == std::vector<size_t>{4, 9});
}

TEST_CASE("regression: inputs that are never used change nothing, such that are not finite are refused") {
  const auto options = Problem::options(Compensation::kBaked);
  const at::Tensor weight = at::ones({kOutputs, kInputs});
  const auto repair = [&](double input) {
    recover::Sample sample(kInputs, kOutputs, 1, options);
    sample.add(0, at::full({kRows, kInputs}, input), at::ones({kRows, kOutputs}), at::ones({kRows, 1}));
    return sample.repair(weight, options, 0, {}).repair.weight;
  };
  CHECK(at::equal(repair(0), weight));
  CHECK_THROWS_WITH_AS(repair(std::nan("")), "the activations of this layer are not finite", Error);
  CHECK_THROWS_AS(repair(std::numeric_limits<double>::infinity()), Error);
}

TEST_CASE("regression: guarded, a change is taken as far as it holds on the held-out batch") {
  const Problem problem;
  const at::Tensor inputs = problem.inputs, now = at::mm(inputs, problem.weight.t());
  const at::Tensor change = 0.5 * at::randn({kOutputs, kInputs}), ones = at::ones({kRows, 1});
  for (const bool weigh : {false, true})
    for (const double holds : {-1., 0., 0.02, 0.3, 1., 1.5}) {
      CAPTURE(holds);
      CAPTURE(weigh);
      auto options = Problem::options(Compensation::kAdapter);
      options.guard = true;
      recover::Sample sample(kInputs, kOutputs, 2, options);
      sample.add(0, inputs, now + at::mm(inputs, change.t()), ones);
      sample.add(1, inputs, now + holds * at::mm(inputs, change.t()), ones);
      const auto root = weigh ? problem.root : at::Tensor();
      const auto found = sample.repair(problem.weight, options, kOutputs, root);
      const double expected = holds < 0.05 ? 0 : std::min(holds, 1.);
      CHECK(found.share == doctest::Approx(expected).epsilon(1e-4));
      CHECK(found.repair.a.defined() == (expected > 0));
      options.guard = false;
      recover::Sample unguarded(kInputs, kOutputs, 2, options);
      unguarded.add(0, inputs, now + at::mm(inputs, change.t()), ones);
      unguarded.add(1, inputs, now + holds * at::mm(inputs, change.t()), ones);
      const auto whole = unguarded.repair(problem.weight, options, kOutputs, root);
      CHECK(whole.share == 1);
      if (expected > 0)
        CHECK(test::relative_difference(at::mm(found.repair.b, found.repair.a),
                                        expected * at::mm(whole.repair.b, whole.repair.a)) < 1e-3);
    }
}
