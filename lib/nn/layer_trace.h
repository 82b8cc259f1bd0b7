#pragma once

#include <ATen/core/Tensor.h>

#include "nn/repairs.h"

namespace elastify::nn {

/// The tensors of a layer's forward pass that its backward pass needs. B sequences of T tokens; the level
/// keeps H query heads, K key heads and F neurons, 0 of a half that it leaves out.
struct LayerTrace {
  at::Tensor input;         ///< residual stream before, [B, T, D]
  at::Tensor q, k, v;       ///< rotated, [B, T, H or K, head_dim]
  at::Tensor raw_q, raw_k;  ///< before q/k norms, [B * T, H or K * head_dim]; undefined without these
  at::Tensor attention;     ///< input of o, [B, T, H * head_dim]
  at::Tensor middle;        ///< residual stream between attention and MLP, [B, T, D]
  at::Tensor gate, up;      ///< [B, T, F]; activation(gate) * up is the input of down
  at::Tensor output;        ///< residual stream after, [B, T, D]
};

/// Gradients of a loss by a layer's input, its units and the level's repairs.
struct LayerGradients {
  at::Tensor input;  ///< by the layer's input, [B, T, D]
  /// Sum over t of a_t dL/da_t for each column of the inputs of o and down, float64 [B, H * head_dim], [B,
  /// F]. These are the gradients by multiplicative masks on the columns, at masks of 1.
  at::Tensor attention_masks, mlp_masks;
  /// Gradients by those tensors of the level's repairs that require one (requires_grad()), float32.
  LayerRepair repairs;
};

}  // namespace elastify::nn
