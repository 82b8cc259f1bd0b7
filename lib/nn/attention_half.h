#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/kv_cache.h"
#include "nn/layer_trace.h"
#include "nn/linear.h"
#include "nn/projection.h"
#include "nn/rope.h"
#include "nn/workspace.h"

namespace elastify::nn {

/// The attention half of a layer at a level's widths and with its repairs:
///   h = norm(x);  q = rope(norm(W_q h)), k = rope(norm(W_k h)), v = W_v h;  y = x + W_o attention(q, k, v)
/// Only some families have norms of q and k. B sequences of T tokens; H query heads share K key heads. The
/// backward pass does not use autograd. All functions run with gradients disabled.
struct AttentionHalf {
  int64_t layer = 0;
  RmsNorm norm, q_norm, k_norm;
  Linear q, k, v;
  Projection o;
  int64_t head_dim = 0;
  int64_t window = 0;  ///< tokens that a query sees; 0: all up to its own
  double scale = 1;    ///< of attention scores
  const RopeTable* rope = nullptr;

  /// \param x      residual stream [B, T, D], contiguous; overwritten by the result
  /// \param cache  receives keys and values, and holds those of earlier tokens; null: there are none
  void forward(const at::Tensor& x, Workspace& workspace, KvCache* cache) const;
  /// Like forward(), but leaves x unchanged and records the tensors that backward() needs: fills `trace` up
  /// to `middle`.
  /// \param projects  false: o adds nothing, and `middle` is x
  void trace(const at::Tensor& x, bool projects, LayerTrace& trace) const;
  /// \param trace   filled by trace() with `projects`, at the same widths and with the same repairs
  /// \param grad    gradient of the loss by `middle`, [B * T, D]; overwritten by the gradient by x
  /// \param result  receives attention_masks
  void backward(const LayerTrace& trace, const at::Tensor& grad, const ParameterGradients& gradients,
                LayerGradients& result) const;

 private:
  at::Tensor run(const at::Tensor& x, Workspace& workspace, KvCache* cache, bool projects,
                 LayerTrace* trace) const;
  at::Tensor heads_backward(const at::Tensor& grad_heads, const at::Tensor& raw, const RmsNorm& head_norm,
                            const ParameterGradients& gradients) const;
};

}  // namespace elastify::nn
