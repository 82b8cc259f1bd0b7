#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

#include "model/checkpoint.h"
#include "nn/decoder.h"

namespace elastify::test {

/// A decoder in LibTorch's plain differentiable operations, float64 unless told otherwise. It shares no code
/// with lib/nn, whose forward passes and hand-written gradients are compared with it and its autograd.
class ReferenceDecoder {
 public:
  struct Options {
    const Widths* widths = nullptr;            ///< null: all
    const nn::LevelRepair* repairs = nullptr;  ///< of these widths; gradients reach its tensors
    /// Multiplied onto the units' activations before o and down, [B, n_units] per space; null: none.
    const std::vector<at::Tensor>* unit_masks = nullptr;
    nn::Half half = nn::Half::kBoth;
  };

  explicit ReferenceDecoder(const Checkpoint& checkpoint, at::ScalarType type = at::kDouble);

  const ModelSpec& spec() const { return spec_; }
  /// The full model's weight, a leaf of autograd; undefined if it has none.
  const at::Tensor& weight(Role role, int64_t layer = -1) const;

  at::Tensor embed(const at::Tensor& ids) const;  ///< [B, T, D]
  at::Tensor layer(int64_t index, const at::Tensor& x, const Options& options) const;
  at::Tensor final_norm(const at::Tensor& x, const Options& options) const;
  at::Tensor hidden(const at::Tensor& ids, const Options& options) const;  ///< after the output norm
  at::Tensor logits(const at::Tensor& hidden) const;
  /// -log p of ids[:, 1:], [B, T - 1].
  at::Tensor token_nll(const at::Tensor& hidden, const at::Tensor& ids) const;
  at::Tensor sequence_nll(const at::Tensor& ids, const Options& options) const;  ///< [B]

 private:
  at::Tensor narrowed_weight(int64_t layer, Role role, const Options& options) const;
  at::Tensor project(const at::Tensor& x, int64_t layer, Role matrix, Role bias,
                     const Options& options) const;
  at::Tensor norm(const at::Tensor& x, int64_t layer, Role role, const Options& options) const;
  at::Tensor rotated(const at::Tensor& heads, int64_t layer) const;
  at::Tensor masked(const at::Tensor& x, size_t space, const Options& options) const;
  at::Tensor attention(const at::Tensor& x, int64_t layer, const Options& options) const;
  at::Tensor mlp(const at::Tensor& x, int64_t layer, const Options& options) const;

  ModelSpec spec_;
  at::ScalarType type_;
  std::array<at::Tensor, kRoles> outer_;
  std::vector<std::array<at::Tensor, kRoles>> layers_;
};

}  // namespace elastify::test
