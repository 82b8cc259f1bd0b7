#include "nn/loss.h"

#include <torch/torch.h>

#include <algorithm>
#include <limits>

#include "nn/kernels.h"
#include "nn/workspace.h"

namespace elastify::nn {
namespace {

constexpr int64_t kLogitBytes = int64_t{8} << 20;  ///< of a piece of logits: about what a cache holds
constexpr int64_t kLossRows = 1024;                ///< positions per pass over the vocabulary

}  // namespace

at::Tensor nll(const at::Tensor& rows, const at::Tensor& targets, const at::Tensor& output) {
  const int64_t n_vocab = output.size(0);
  at::Tensor result = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat));
  Workspace workspace;
  for (int64_t first = 0; first < rows.size(0); first += kLossRows) {
    const int64_t n = std::min(kLossRows, rows.size(0) - first);
    const at::Tensor slab = rows.narrow(0, first, n);
    const at::Tensor slab_targets = targets.narrow(0, first, n);
    at::Tensor maximum = at::full({n}, -std::numeric_limits<float>::infinity(), result.options());
    at::Tensor sum = at::zeros({n}, result.options()), target_logits = at::zeros({n}, result.options());
    const int64_t piece = std::max<int64_t>(1, kLogitBytes / (n * 4));
    for (int64_t v = 0; v < n_vocab; v += piece) {
      const int64_t n_pieces = std::min(piece, n_vocab - v);
      at::Tensor logits = workspace.get(Workspace::Slot::kLogits, n, n_pieces, rows.options());
      at::mm_out(logits, slab, output.narrow(0, v, n_pieces).t());
      logits = logits.to(at::kFloat);
      const auto inside = slab_targets.ge(v).logical_and(slab_targets.lt(v + n_pieces));
      const auto place = (slab_targets - v).clamp(0, n_pieces - 1).unsqueeze(1);
      target_logits += logits.gather(1, place).squeeze(1) * inside;
      if (is_fused(logits)) {
        accumulate_log_sum_exp(logits, maximum, sum);
      } else {
        const auto highest = at::maximum(maximum, logits.amax(1));
        sum = sum * (maximum - highest).exp() + (logits - highest.unsqueeze(1)).exp().sum(1);
        maximum = highest;
      }
    }
    result.narrow(0, first, n).copy_(maximum + sum.log() - target_logits);
  }
  return result;
}

std::pair<at::Tensor, at::Tensor> nll_and_gradient(const at::Tensor& rows, const at::Tensor& targets,
                                                   const at::Tensor& output) {
  // Slabs have equal sizes, because a thin last one would give a slow product.
  const int64_t most = std::max<int64_t>(1, 4 * kLogitBytes / (output.size(0) * 4));
  const int64_t n_slabs = (rows.size(0) + most - 1) / most;
  const int64_t slab = (rows.size(0) + n_slabs - 1) / std::max<int64_t>(1, n_slabs);
  at::Tensor losses = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat));
  at::Tensor gradient = at::empty_like(rows);
  Workspace workspace;
  for (int64_t first = 0; first < rows.size(0); first += slab) {
    const int64_t n = std::min(slab, rows.size(0) - first);
    at::Tensor logits = workspace.get(Workspace::Slot::kLogits, n, output.size(0), rows.options());
    at::mm_out(logits, rows.narrow(0, first, n), output.t());
    logits = logits.to(at::kFloat);
    at::Tensor slab_targets, target_logits;
    if (targets.defined()) {
      slab_targets = targets.narrow(0, first, n).unsqueeze(1);
      target_logits = logits.gather(1, slab_targets).squeeze(1);
    }
    at::Tensor log_sums;
    if (is_fused(logits)) {
      log_sums = softmax_rows(logits);
    } else {
      log_sums = at::logsumexp(logits, 1);
      logits.sub_(log_sums.unsqueeze(1)).exp_();
    }
    losses.narrow(0, first, n).copy_(targets.defined() ? log_sums - target_logits : log_sums);
    if (targets.defined()) logits.scatter_add_(1, slab_targets, logits.new_full({n, 1}, -1));
    at::Tensor part = gradient.narrow(0, first, n);
    at::mm_out(part, logits.to(rows.scalar_type()), output);
  }
  return {losses, gradient};
}

}  // namespace elastify::nn
