#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "model/spec.h"

namespace elastify::nn {

/// The parts of one tensor of a layer that a level has of its own; undefined where there is none. A norm has
/// a weight only.
struct TensorRepair {
  at::Tensor
      weight;       ///< replaces the full model's at the level's widths: [out, in] of a matrix, [n] of a norm
  at::Tensor a, b;  ///< low-rank adapter, b a is added to the matrix: [rank, in], [out, rank]
  at::Tensor bias;  ///< added to the product, beside the model's own bias, [out]
};

/// By the role of the matrix or norm: kQuery, kKey, kValue, kAttnOut, kGate, kUp, kDown, kAttnNorm, kFfnNorm.
using LayerRepair = std::map<Role, TensorRepair>;

/// All repairs of one level.
struct LevelRepair {
  std::vector<LayerRepair> layers;  ///< [n_layers]
  at::Tensor output_norm;           ///< weights of the output norm instead of the full model's, [D]

  /// \returns null where the layer's tensor has nothing of its own
  const TensorRepair* find(int64_t layer, Role role) const {
    const LayerRepair& repairs = layers.at(static_cast<size_t>(layer));
    const auto found = repairs.find(role);
    return found == repairs.end() ? nullptr : &found->second;
  }
};

}  // namespace elastify::nn
