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

// The weights of a decoder, and the halves of layers made from them. Private to the decoder's files.

namespace elastify::nn {

struct Decoder::State {
  State(const Checkpoint& source, const DecoderOptions& options);

  ModelSpec spec;
  Checkpoint checkpoint;
  c10::Device device;
  c10::ScalarType dtype;
  bool streamed;
  // If streamed, only the layer that ran last, or the output, holds its weights.
  mutable std::array<at::Tensor, kRoles> outer;
  mutable std::vector<std::array<at::Tensor, kRoles>> layers;
  mutable int64_t resident = -1;             ///< loaded layer, or n_layers for the output; streamed only
  std::deque<RopeTable> ropes;               ///< one for each rope base and scaling
  std::vector<const RopeTable*> layer_rope;  ///< [n_layers]

  at::Tensor load(size_t index) const;  ///< spec.tensors[index] in device and type
  /// Loads the weights of the layer (n_layers: of the output) if they are not in memory.
  void require(int64_t layer) const;
  at::Tensor output_weight() const;
  RmsNorm output_norm(const LevelRepair* repairs) const;
  /// The leading part of a weight at these widths, as a view; undefined if the model has no such tensor.
  at::Tensor layer_weight(int64_t layer, Role role, const Widths* widths) const;
  at::Tensor embed(const at::Tensor& ids) const;

  /// Number of units of a space at these widths; null: the model's own.
  int64_t n_units(size_t space, const Widths* widths) const;
  /// Whether the half runs; if not, it is the identity.
  bool attends(int64_t layer, const ForwardOptions& options) const;
  bool has_mlp(int64_t layer, const ForwardOptions& options) const;
  // Parts of a layer, made from its weights, which must be in memory.
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
  /// Checks the conditions for running layers on T tokens.
  void check_pass(int64_t n_tokens, const ForwardOptions& options, const KvCache* cache) const;
  void check_layer(int64_t layer) const;
};

}  // namespace elastify::nn
