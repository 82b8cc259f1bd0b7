#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <array>
#include <mutex>
#include <utility>
#include <vector>

#include "nn/decoder.h"

// What the decoder's files share; nobody else includes this.

namespace elastify::nn {

inline constexpr size_t kRoles = static_cast<size_t>(Role::kDownBias) + 1;

/// One of the large intermediate results of a forward pass, kept from layer to layer.
class Buffer {
 public:
  at::Tensor get(int64_t rows, int64_t columns, const at::TensorOptions& options);

 private:
  at::Tensor storage_;
};

struct Workspace {
  Buffer norm, query, key, value, attention, gate, up;
};

struct Decoder::State {
  State(const Checkpoint& source, const DecoderOptions& options);

  ModelSpec spec;
  Checkpoint checkpoint;
  c10::Device device;
  c10::ScalarType dtype;
  bool streamed;
  double scale;  ///< of attention scores
  std::vector<float> frequencies;
  // Streamed, one layer has its weights, or the output has: the last one that ran.
  mutable std::array<at::Tensor, kRoles> outer;
  mutable std::vector<std::array<at::Tensor, kRoles>> layers;
  mutable int64_t resident = -1;  ///< layer, or n_layers: the output; streamed only
  mutable std::mutex rope_mutex;
  mutable at::Tensor cosines, sines;  ///< float32 [positions so far, head_dim / 2]

  at::Tensor load(size_t index) const;  ///< spec.tensors[index] in device and type
  /// Sees to it that the layer's weights (n_layers: the output's) are there.
  void require(int64_t layer) const;
  at::Tensor output_weight() const;
  const at::Tensor& output_norm() const { return outer[static_cast<size_t>(Role::kOutputNorm)]; }
  /// The leading part at these widths, as a view; undefined where the model has no such tensor.
  at::Tensor layer_weight(int64_t layer, Role role, const Widths* widths) const;
  /// Whether a half of the layer is there at these widths (null: the model's own), or is the identity.
  bool has_half(size_t space, const Widths* widths) const;
  at::Tensor embed(const at::Tensor& ids) const;
  /// Cosines and sines of positions [first, first + n).
  std::pair<at::Tensor, at::Tensor> rope_table(int64_t first, int64_t n) const;

  void check_ids(const at::Tensor& ids) const;
  /// Everything that must hold before layers run on T tokens.
  void check_pass(int64_t n_tokens, const ForwardOptions& options, const KvCache* cache) const;
  void check_layer(int64_t layer) const;
  /// Multiplies a space's mask onto activations [B, T, units * block]; in place or not.
  at::Tensor apply_mask(const at::Tensor& x, size_t space, const ForwardOptions& options,
                        bool in_place) const;
  /// Whether somebody asks for gradients through autograd.
  bool wants_gradient(const at::Tensor& x, const ForwardOptions& options) const;
  /// Appends keys and values [B, K, T, head_dim] of a layer; returns all of them so far.
  std::pair<at::Tensor, at::Tensor> append(KvCache& cache, int64_t layer, const at::Tensor& k,
                                           const at::Tensor& v) const;

  /// result = residual + input W^T, with the bias of o or down and its repair; result may be the residual.
  /// \param residual, result  [n, D], input [n, columns]
  void add_projection(int64_t layer, Site site, const at::Tensor& residual, const at::Tensor& input,
                      const ForwardOptions& options, at::Tensor result) const;
  /// One layer without autograd.
  /// \param x  residual stream [B, T, D]: overwritten by the result, unless `trace` takes everything that the
  ///   way back needs
  void run(int64_t layer, const at::Tensor& x, const ForwardOptions& options, KvCache* cache,
           Workspace& workspace, LayerTrace* trace) const;
  at::Tensor run_differentiable(int64_t layer, const at::Tensor& x, const ForwardOptions& options,
                                KvCache* cache) const;
  at::Tensor rows_nll(const at::Tensor& rows, const at::Tensor& targets) const;
};

/// -log p of targets and its gradient by the rows, slab by slab, so that no logits are kept.
/// \param rows  [n, D] hidden states;
/// \param targets  int64 [n]; undefined: of logits of 0, which leaves the log of the sum of exp(logits)
/// \param output  [V, D]
/// \returns nll float32 [n]; gradient, like rows
std::pair<at::Tensor, at::Tensor> nll_and_gradient(const at::Tensor& rows, const at::Tensor& targets,
                                                   const at::Tensor& output);

/// Differentiable, over the last axis.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// x W^T + bias into out; bias may be undefined.
void linear_into(at::Tensor out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace elastify::nn
