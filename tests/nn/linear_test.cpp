#include "nn/linear.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <map>

#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// A matrix with bias and repair, its input, and the plain formula for its output.
struct Problem {
  at::Tensor weight = torch::randn({6, 4}), bias = torch::randn({6});
  at::Tensor x = torch::randn({9, 4}), grad_y = torch::randn({9, 6});
  nn::TensorRepair repair{{}, torch::randn({2, 4}), torch::randn({6, 2}), torch::randn({6})};

  nn::Linear linear(Role role = Role::kQuery, Role bias_role = Role::kQueryBias) const {
    return {{role, weight}, {bias_role, bias}, &repair};
  }
  at::Tensor expected() const {
    return at::mm(x, (weight + at::mm(repair.b, repair.a)).t()) + bias + repair.bias;
  }
};

}  // namespace

TEST_CASE("linear: weight, biases and adapter make one product, alone or on top of a residual") {
  torch::manual_seed(1);
  const Problem problem;
  const at::Tensor y = at::empty({9, 6}), residual = torch::randn({9, 6});
  problem.linear().forward(problem.x, y);
  CHECK(relative_difference(y, problem.expected()) < 1e-5);
  problem.linear().add_forward(problem.x, residual, y);
  CHECK(relative_difference(y, residual + problem.expected()) < 1e-5);
  const at::Tensor in_place = residual.clone();
  problem.linear().add_forward(problem.x, in_place, in_place);
  CHECK(at::equal(in_place, y));
}

TEST_CASE("linear: gradients by the input are given or added") {
  torch::manual_seed(2);
  const Problem problem;
  const at::Tensor found = at::empty({9, 4});
  problem.linear().backward(problem.grad_y, found);
  const at::Tensor expected =
      at::mm(problem.grad_y, problem.weight + at::mm(problem.repair.b, problem.repair.a));
  CHECK(relative_difference(found, expected) < 1e-5);
  problem.linear().add_backward(problem.grad_y, found);
  CHECK(relative_difference(found, 2 * expected) < 1e-5);
}

TEST_CASE("linear: the frozen matrix's gradient is given, that of a bias only where it has units") {
  torch::manual_seed(3);
  const Problem problem;
  for (const bool has_units : {true, false}) {
    std::map<Role, at::Tensor> frozen;
    nn::LayerRepair own;
    const nn::WeightGradientSink sink = [&](Role role, const at::Tensor& gradient) {
      frozen[role] = gradient;
    };
    const nn::Linear linear = has_units ? problem.linear() : problem.linear(Role::kDown, Role::kDownBias);
    linear.leave_gradients(problem.x, problem.grad_y, {sink, own});
    CHECK(own.empty());
    CHECK(frozen.size() == (has_units ? 2 : 1));
    const at::Tensor expected = at::mm(problem.grad_y.t(), problem.x);
    CHECK(relative_difference(frozen.at(has_units ? Role::kQuery : Role::kDown), expected) < 1e-5);
    if (has_units) CHECK(relative_difference(frozen.at(Role::kQueryBias), problem.grad_y.sum(0)) < 1e-5);
  }
}

TEST_CASE("rms norm: an own weight replaces the file's, and the offset is added to either") {
  torch::manual_seed(4);
  const at::Tensor x = torch::randn({7, 5}), weight = torch::randn({5}), y = at::empty({7, 5});
  const at::Tensor normed = x * at::rsqrt(x.square().mean(1, true) + 1e-5);
  nn::RmsNorm(Role::kAttnNorm, weight, 1e-5, 0, nullptr).forward(x, y);
  CHECK(relative_difference(y, normed * weight) < 1e-5);
  nn::TensorRepair own;
  own.weight = torch::randn({5});
  nn::RmsNorm(Role::kAttnNorm, weight, 1e-5, 1, &own).forward(x, y);
  CHECK(relative_difference(y, normed * (own.weight + 1)) < 1e-5);
  CHECK_FALSE(nn::RmsNorm(Role::kQueryNorm, at::Tensor(), 1e-5, 1, nullptr).defined());
}
