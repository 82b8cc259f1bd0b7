#include "nn/attention_half.h"

#include <torch/torch.h>

#include <utility>

#include "nn/attention.h"
#include "nn/kernels.h"

namespace elastify::nn {
namespace {

/// [B, T, heads, head_dim] as [B, heads, T, head_dim], and back.
at::Tensor by_head(const at::Tensor& x) {
  return x.transpose(1, 2);
}

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

}  // namespace

at::Tensor AttentionHalf::run(const at::Tensor& x, Workspace& workspace, KvCache* cache, bool projects,
                              LayerTrace* trace) const {
  using Slot = Workspace::Slot;
  const int64_t n_batch = x.size(0), n_tokens = x.size(1), n = n_batch * n_tokens;
  const auto heads = [&](const at::Tensor& rows) { return rows.view({n_batch, n_tokens, -1, head_dim}); };
  // A trace must not use the workspace, which the next layer overwrites.
  const auto space = [&](Slot slot, int64_t columns) {
    return trace != nullptr ? at::empty({n, columns}, x.options())
                            : workspace.get(slot, n, columns, x.options());
  };
  const at::Tensor stream = x.view({n, -1});                                        // [n, D]
  const at::Tensor h = workspace.get(Slot::kNorm, n, stream.size(1), x.options());  // [n, D]
  const at::Tensor queries = space(Slot::kQuery, q.n_outputs());                    // [n, H * head_dim]
  const at::Tensor keys = space(Slot::kKey, k.n_outputs());                         // [n, K * head_dim]
  const at::Tensor values = space(Slot::kValue, v.n_outputs());                     // [n, K * head_dim]
  const at::Tensor mixed = space(Slot::kMixed, q.n_outputs());                      // [n, H * head_dim]
  norm.forward(stream, h);
  q.forward(h, queries);
  k.forward(h, keys);
  v.forward(h, values);
  if (trace != nullptr && q_norm.defined()) {
    trace->raw_q = queries.clone();
    trace->raw_k = keys.clone();
  }
  const auto [cosines, sines] = rope->at_positions(cache != nullptr ? cache->length : 0, n_tokens);
  for (const auto& [rows, head_norm] : {std::pair{queries, &q_norm}, std::pair{keys, &k_norm}}) {
    const at::Tensor flat = rows.view({-1, head_dim});  // [n * heads, head_dim]
    if (head_norm->defined()) head_norm->forward(flat, flat);
    rotate_heads(heads(rows), cosines, sines);
  }
  at::Tensor all_keys = by_head(heads(keys)), all_values = by_head(heads(values));  // [B, K, T, head_dim]
  if (cache != nullptr) std::tie(all_keys, all_values) = cache->append(layer, all_keys, all_values);
  attend_into(by_head(heads(mixed)), by_head(heads(queries)), all_keys, all_values, window, scale);
  const at::Tensor result = trace != nullptr && projects ? at::empty_like(stream) : stream;
  if (projects) o.add_forward(mixed, stream, result);
  if (trace != nullptr) {
    trace->q = heads(queries);
    trace->k = heads(keys);
    trace->v = heads(values);
    trace->attention = mixed.view({n_batch, n_tokens, -1});
  }
  return result.view(x.sizes());
}

void AttentionHalf::forward(const at::Tensor& x, Workspace& workspace, KvCache* cache) const {
  run(x, workspace, cache, true, nullptr);
}

void AttentionHalf::trace(const at::Tensor& x, bool projects, LayerTrace& trace) const {
  Workspace workspace;
  trace.middle = run(x, workspace, nullptr, projects, &trace);
}

/// The backward pass through the rotation and the norm of heads.
/// \param grad_heads  gradient by the rotated heads, [B, heads, T, head_dim]
/// \param raw         heads before the norm, [n, heads * head_dim]
/// \returns           gradient by the output of the matrix, [n, heads * head_dim]
at::Tensor AttentionHalf::heads_backward(const at::Tensor& grad_heads, const at::Tensor& raw,
                                         const RmsNorm& head_norm,
                                         const ParameterGradients& gradients) const {
  const at::Tensor grad = by_head(grad_heads).contiguous();  // [B, T, heads, head_dim]
  const auto [cosines, sines] = rope->at_positions(0, grad.size(1));
  rotate_heads(grad, cosines, -sines);
  const at::Tensor rows = grad.view({grad.size(0) * grad.size(1), -1});
  if (!head_norm.defined()) return rows;
  const at::Tensor flat = raw.view({-1, head_dim}), grad_flat = rows.view({-1, head_dim});
  head_norm.leave_gradients(flat, grad_flat, gradients);
  const at::Tensor before = at::zeros_like(rows);
  head_norm.add_backward(flat, grad_flat, before.view({-1, head_dim}));
  return before;
}

void AttentionHalf::backward(const LayerTrace& trace, const at::Tensor& grad,
                             const ParameterGradients& gradients, LayerGradients& result) const {
  const at::Tensor mixed = rows_of(trace.attention);                 // [n, H * head_dim]
  const at::Tensor grad_mixed = o.backward(mixed, grad, gradients);  // [n, H * head_dim]
  result.attention_masks = sum_products(trace.attention, grad_mixed.view(trace.attention.sizes()));
  const auto attention = attend_backward(by_head(trace.q), by_head(trace.k), by_head(trace.v), window, scale,
                                         by_head(grad_mixed.view(trace.q.sizes())));
  const at::Tensor grad_q = heads_backward(attention.q, trace.raw_q, q_norm, gradients);  // [n, H * head_dim]
  const at::Tensor grad_k = heads_backward(attention.k, trace.raw_k, k_norm, gradients);  // [n, K * head_dim]
  const at::Tensor grad_v = by_head(attention.v).reshape({mixed.size(0), -1});            // [n, K * head_dim]
  const at::Tensor x = rows_of(trace.input), h = at::empty_like(x);                       // [n, D]
  if (q.has_gradients(gradients) || k.has_gradients(gradients) || v.has_gradients(gradients)) {
    norm.forward(x, h);
    q.leave_gradients(h, grad_q, gradients);
    k.leave_gradients(h, grad_k, gradients);
    v.leave_gradients(h, grad_v, gradients);
  }
  const at::Tensor& grad_h = h;  // the input of q, k and v is no longer needed
  q.backward(grad_q, grad_h);
  k.add_backward(grad_k, grad_h);
  v.add_backward(grad_v, grad_h);
  norm.leave_gradients(x, grad_h, gradients);
  norm.add_backward(x, grad_h, grad);
}

}  // namespace elastify::nn
