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
/// where q and k have norms in some families only. B sequences of T tokens; H query heads share K key heads.
/// Gradients go through without autograd. All of it runs with gradients disabled.
struct AttentionHalf {
  int64_t layer = 0;
  RmsNorm norm, q_norm, k_norm;
  Linear q, k, v;
  Projection o;
  int64_t head_dim = 0;
  int64_t window = 0;  ///< tokens that a query sees; 0: all before it
  double scale = 1;    ///< of attention scores
  const RopeTable* rope = nullptr;

  /// \param x      residual stream [B, T, D], contiguous; overwritten by the result
  /// \param cache  takes keys and values, and gives those of the tokens before; null: there are none before
  void forward(const at::Tensor& x, Workspace& workspace, KvCache* cache) const;
  /// The same, leaving x as it is, with what backward() needs: fills `trace` up to `middle`.
  /// \param projects  false: o adds nothing, and `middle` is x
  void trace(const at::Tensor& x, bool projects, LayerTrace& trace) const;
  /// \param trace   as trace() filled it with `projects`, of the same widths and repairs
  /// \param grad    of the loss by `middle`, [B * T, D]; becomes that by x
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
