#include "nn/loss.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("loss: -log p and its gradient are those of a plain log-softmax, over several slabs and pieces") {
  torch::manual_seed(3);
  const at::Tensor output = torch::randn({5000, 32});
  const at::Tensor rows = torch::randn({2100, 32}), targets = torch::randint(5000, {2100}, at::kLong);
  at::Tensor x = rows.to(at::kDouble).requires_grad_();
  const at::Tensor log_p = at::log_softmax(at::mm(x, output.to(at::kDouble).t()), -1);
  const at::Tensor expected = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1);
  CHECK(relative_difference(nn::nll(rows, targets, output), expected) < 1e-5);
  const auto [losses, gradient] = nn::nll_and_gradient(rows, targets, output);
  CHECK(relative_difference(losses, expected) < 1e-5);
  CHECK(relative_difference(gradient, torch::autograd::grad({expected.sum()}, {x})[0]) < 1e-5);
}

TEST_CASE("loss: without targets it is the log of the sum, and the mean row of the output matrix") {
  torch::manual_seed(4);
  const at::Tensor output = torch::randn({96, 16}), rows = torch::randn({10, 16});
  const at::Tensor logits = at::mm(rows, output.t());
  const auto [log_sums, mean] = nn::nll_and_gradient(rows, at::Tensor(), output);
  CHECK(relative_difference(log_sums, at::logsumexp(logits, 1)) < 1e-5);
  CHECK(relative_difference(mean, at::mm(at::softmax(logits, 1), output)) < 1e-5);
}
