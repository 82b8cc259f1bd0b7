#include "nn/kernels.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

using namespace elastify;

TEST_CASE("kernels: moments of more columns than one product has are all there, added to what was") {
  torch::manual_seed(5);
  const at::Tensor x = at::randn({7, 1100});  // three products, the last one narrower
  const at::Tensor before = at::randn({1100, 1100}, at::kDouble);
  const at::Tensor total = before.clone();
  nn::add_moments(x, total);
  const at::Tensor wide = x.to(at::kDouble);
  CHECK(at::allclose(total.tril(), (before + at::mm(wide.t(), wide)).tril(), 1e-5, 1e-5));
}
