#include "nn/attention.h"

#include <torch/torch.h>

#include <algorithm>

#include "nn/kernels.h"
#include "nn/torch_compat.h"

namespace elastify::nn {
namespace {

constexpr int64_t kQueryBlock = 128;

/// Consecutive queries of one head, and the keys that at least one of them sees.
struct QueryBlock {
  int64_t first, n_rows;
  int64_t position;  ///< of the first query
  int64_t window;
  int64_t first_key, n_keys;

  static QueryBlock make(int64_t first, int64_t n_queries, int64_t past, int64_t window) {
    const int64_t n_rows = std::min(kQueryBlock, n_queries - first);
    const int64_t first_key = visible_keys(past + first, window).first;
    return {first, n_rows, past + first, window, first_key, past + first + n_rows - first_key};
  }
  at::Tensor queries(const at::Tensor& head) const { return head.narrow(0, first, n_rows); }
  at::Tensor keys(const at::Tensor& group) const { return group.narrow(0, first_key, n_keys); }
  at::Tensor scores(const at::Tensor& scratch) const {
    return scratch.narrow(0, 0, n_rows * n_keys).view({n_rows, n_keys});
  }
  void softmax(const at::Tensor& scores, double scale) const {
    float* row = scores.data_ptr<float>();
    for (int64_t i = 0; i < n_rows; ++i, row += n_keys) {
      const KeyRange seen = visible_keys(position + i, window);
      softmax_row(row, n_keys, seen.first - first_key, seen.last - first_key, static_cast<float>(scale));
    }
  }
};

/// Attention of one new token per sequence. The heads of a group see the same keys, so one matrix product
/// handles them all.
void attend_one_token(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                      double scale, const at::Tensor& out) {
  const int64_t n_groups = k.size(1), heads_per_group = q.size(1) / n_groups;
  const KeyRange seen = visible_keys(k.size(2) - 1, window);
  const int64_t n_keys = seen.last - seen.first;
  at::parallel_for(0, q.size(0) * n_groups, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain_tensors;
    at::Tensor scores = at::empty({heads_per_group, n_keys}, q.options());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / n_groups, group = i % n_groups;
      const auto heads = [&](const at::Tensor& x) {
        return x[batch].narrow(0, group * heads_per_group, heads_per_group).select(1, 0);
      };
      const auto keys = [&](const at::Tensor& x) { return x[batch][group].narrow(0, seen.first, n_keys); };
      at::mm_out(scores, heads(q), keys(k).t());
      for (int64_t row = 0; row < heads_per_group; ++row)
        softmax_row(scores.data_ptr<float>() + row * n_keys, n_keys, 0, n_keys, static_cast<float>(scale));
      at::Tensor result = heads(out);
      at::mm_out(result, scores, keys(v));
    }
  });
}

/// An empty tensor with the shape of x, [B, H, T, head_dim], laid out as [B, T, H, head_dim] for projections.
at::Tensor empty_by_position(const at::Tensor& x) {
  return at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
}

AttentionGradients attend_backward_blocked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           int64_t window, double scale, const at::Tensor& upstream) {
  const at::Tensor grad_out = upstream.stride(-1) == 1 ? upstream : upstream.contiguous();
  const int64_t n_heads = q.size(1), heads_per_group = n_heads / k.size(1);
  const int64_t n_queries = q.size(2), n_keys = k.size(2), past = n_keys - n_queries;
  const at::Tensor grad_q = empty_by_position(q);
  // Heads of one group add to the gradients of the same keys. Each head has a separate copy; these are added
  // at the end, in order.
  const std::vector<int64_t> by_head{q.size(0), n_heads, n_keys, q.size(3)};
  const at::Tensor grad_keys = at::zeros(by_head, q.options()), grad_values = at::zeros(by_head, q.options());
  at::parallel_for(0, q.size(0) * n_heads, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain_tensors;
    const at::Tensor scratch = at::empty({2, std::min(kQueryBlock, n_queries) * n_keys}, q.options());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / n_heads, head = i % n_heads, group = head / heads_per_group;
      for (int64_t first = 0; first < n_queries; first += kQueryBlock) {
        const auto block = QueryBlock::make(first, n_queries, past, window);
        const at::Tensor queries = block.queries(q[batch][head]), keys = block.keys(k[batch][group]);
        const at::Tensor grad_rows = block.queries(grad_out[batch][head]);
        at::Tensor weights = block.scores(scratch[0]), grad_weights = block.scores(scratch[1]);
        at::mm_out(weights, queries, keys.t());
        block.softmax(weights, scale);
        block.keys(grad_values[batch][head]).addmm_(weights.t(), grad_rows);
        at::mm_out(grad_weights, grad_rows, block.keys(v[batch][group]).t());
        softmax_backward_rows(weights, grad_weights, static_cast<float>(scale));
        at::Tensor grad_queries = block.queries(grad_q[batch][head]);
        at::mm_out(grad_queries, grad_weights, keys);
        block.keys(grad_keys[batch][head]).addmm_(grad_weights.t(), queries);
      }
    }
  });
  const auto by_group = [&](const at::Tensor& heads) {
    return heads.view({q.size(0), k.size(1), heads_per_group, n_keys, q.size(3)}).sum(2);
  };
  return {grad_q, by_group(grad_keys), by_group(grad_values)};
}

/// Attention on any device and in any type, differentiable by autograd.
at::Tensor attend_anywhere(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                           double scale) {
  const int64_t n_queries = q.size(2), n_keys = k.size(2);
  const auto options = at::TensorOptions().dtype(at::kLong).device(q.device());
  const auto distance =
      at::arange(n_keys - n_queries, n_keys, options).unsqueeze(1) - at::arange(n_keys, options);
  auto visible = distance >= 0;
  if (window > 0) visible = visible.logical_and(distance < window);
  return attend_differentiable(q, k, v, visible, scale);
}

}  // namespace

void attend_into(const at::Tensor& out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 int64_t window, double scale) {
  if (q.numel() == 0) return;
  if (!is_fused(q)) {
    out.copy_(attend_anywhere(q, k, v, window, scale));
    return;
  }
  if (q.size(2) == 1) return attend_one_token(q, k, v, window, scale, out);
  const int64_t n_heads = q.size(1), heads_per_group = n_heads / k.size(1);
  const int64_t n_queries = q.size(2), past = k.size(2) - n_queries;
  const int64_t n_blocks = (n_queries + kQueryBlock - 1) / kQueryBlock;
  at::parallel_for(0, q.size(0) * n_heads * n_blocks, 1, [&](int64_t begin, int64_t end) {
    // Worker threads do not inherit the caller's inference or gradient mode.
    const at::AutoDispatchBelowADInplaceOrView plain_tensors;
    const at::Tensor scratch = at::empty({std::min(kQueryBlock, n_queries) * k.size(2)}, q.options());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / n_blocks / n_heads, head = i / n_blocks % n_heads;
      const int64_t group = head / heads_per_group;
      const auto block = QueryBlock::make(i % n_blocks * kQueryBlock, n_queries, past, window);
      at::Tensor scores = block.scores(scratch), result = block.queries(out[batch][head]);
      at::mm_out(scores, block.queries(q[batch][head]), block.keys(k[batch][group]).t());
      block.softmax(scores, scale);
      at::mm_out(result, scores, block.keys(v[batch][group]));
    }
  });
}

AttentionGradients attend_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   int64_t window, double scale, const at::Tensor& grad_out) {
  if (is_fused(q)) return attend_backward_blocked(q, k, v, window, scale, grad_out);
  // On a GPU, LibTorch's autograd computes the gradients of attention.
  const c10::AutoGradMode gradients(true);
  const std::vector<at::Tensor> inputs{q.detach().requires_grad_(), k.detach().requires_grad_(),
                                       v.detach().requires_grad_()};
  const at::Tensor out = attend_anywhere(inputs[0], inputs[1], inputs[2], window, scale);
  const auto grad = torch::autograd::grad({out}, inputs, {grad_out});
  return {grad[0], grad[1], grad[2]};
}

}  // namespace elastify::nn
