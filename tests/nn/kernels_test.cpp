#include "nn/kernels.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

using namespace elastify;

TEST_CASE("kernels: gated products and their gradients are autograd's, for every activation and type") {
  torch::manual_seed(6);
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh})
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const double tolerance = type == at::kFloat ? 2e-5 : 3e-2;
      const at::Tensor gate = (4 * at::randn({2, 5, 300})).to(type), up = at::randn({2, 5, 300}).to(type);
      const at::Tensor grad = at::randn({2, 5, 300}).to(type), out = at::empty_like(gate);
      const at::Tensor g = gate.to(at::kDouble).requires_grad_(), u = up.to(at::kDouble).requires_grad_();
      const at::Tensor expected = (activation == Activation::kSilu ? at::silu(g) : at::gelu(g, "tanh")) * u;
      nn::multiply_gated(activation, gate, up, out);
      CHECK(at::allclose(out.to(at::kDouble), expected, tolerance, tolerance));
      const auto wanted = torch::autograd::grad({expected}, {g, u}, {grad.to(at::kDouble)});
      const at::Tensor sums = nn::multiply_gated_backward(activation, gate, up, grad);
      CHECK(at::allclose(gate.to(at::kDouble), wanted[0], tolerance, tolerance));
      CHECK(at::allclose(up.to(at::kDouble), wanted[1], tolerance, tolerance));
      CHECK(at::allclose(sums, (expected.detach() * grad.to(at::kDouble)).sum(1), tolerance, 4 * tolerance));
    }
}

TEST_CASE("kernels: moments of more columns than one product has are all there, added to what was") {
  torch::manual_seed(5);
  const at::Tensor x = at::randn({7, 1100});  // three matrix products, the last one narrower
  const at::Tensor before = at::randn({1100, 1100}, at::kDouble);
  const at::Tensor total = before.clone();
  nn::add_moments(x, total);
  const at::Tensor wide = x.to(at::kDouble);
  CHECK(at::allclose(total.tril(), (before + at::mm(wide.t(), wide)).tril(), 1e-5, 1e-5));
}
