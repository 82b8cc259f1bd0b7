#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <array>
#include <deque>
#include <vector>

#include "nn/attention_half.h"
#include "nn/decoder.h"
#include "nn/mlp_half.h"
#include "nn/rope.h"

// Weights of a decoder, and halves of layers put together from them. Private to the decoder's files.

namespace elastify::nn {

struct Decoder::State {
  State(const Checkpoint& source, const DecoderOptions& options);

  ModelSpec spec;
  Checkpoint checkpoint;
  c10::Device device;
  c10::ScalarType dtype;
  bool streamed;
  // Streamed, one layer has its weights, or the output has: the last one that ran.
  mutable std::array<at::Tensor, kRoles> outer;
  mutable std::vector<std::array<at::Tensor, kRoles>> layers;
  mutable int64_t resident = -1;             ///< layer, or n_layers: the output; streamed only
  std::deque<RopeTable> ropes;               ///< one for all layers of the same base and scaling
  std::vector<const RopeTable*> layer_rope;  ///< [n_layers]

  at::Tensor load(size_t index) const;  ///< spec.tensors[index] in device and type
  /// Sees to it that the layer's weights (n_layers: the output's) are there.
  void require(int64_t layer) const;
  at::Tensor output_weight() const;
  RmsNorm output_norm(const LevelRepair* repairs) const;
  /// The leading part at these widths, as a view; undefined where the model has no such tensor.
  at::Tensor layer_weight(int64_t layer, Role role, const Widths* widths) const;
  at::Tensor embed(const at::Tensor& ids) const;

  /// Units that the layer's half has at these widths (null: the model's own).
  int64_t n_units(size_t space, const Widths* widths) const;
  /// Whether the half runs, or is the identity.
  bool attends(int64_t layer, const ForwardOptions& options) const;
  bool has_mlp(int64_t layer, const ForwardOptions& options) const;
  // Put together from the layer's weights, which must be there.
  Linear linear(int64_t layer, Role matrix, Role bias, const ForwardOptions& options) const;
  RmsNorm norm(int64_t layer, Role role, const ForwardOptions& options) const;
  Projection projection(int64_t layer, Site site, const ForwardOptions& options) const;
  AttentionHalf attention_half(int64_t layer, const ForwardOptions& options) const;
  MlpHalf mlp_half(int64_t layer, const ForwardOptions& options) const;

  /// Runs one layer.
  /// \param x  residual stream [B, T, D], contiguous; overwritten by the result
  void run(int64_t layer, const at::Tensor& x, const ForwardOptions& options, KvCache* cache,
           Workspace& workspace) const;

  void check_ids(const at::Tensor& ids) const;
  /// Everything that must hold before layers run on T tokens.
  void check_pass(int64_t n_tokens, const ForwardOptions& options, const KvCache* cache) const;
  void check_layer(int64_t layer) const;
};

}  // namespace elastify::nn
