#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "model/spec.h"

namespace elastify::nn {

/// A level's repair of one tensor of a layer. Absent parts are undefined. A norm has a weight only.
struct TensorRepair {
  at::Tensor
      weight;       ///< replaces the full model's at the level's widths: [out, in] of a matrix, [n] of a norm
  at::Tensor a, b;  ///< low-rank adapter, b a is added to the matrix: [rank, in], [out, rank]
  at::Tensor bias;  ///< added to the product, beside the model's own bias, [out]
};

/// Repairs of a layer's tensors: kQuery, kKey, kValue, kAttnOut, kGate, kUp, kDown, kAttnNorm, kFfnNorm.
using LayerRepair = std::map<Role, TensorRepair>;

/// All repairs of one level.
struct LevelRepair {
  std::vector<LayerRepair> layers;  ///< [n_layers]
  at::Tensor output_norm;           ///< replaces the full model's output norm, [D]

  /// \returns null if the tensor has no repair
  const TensorRepair* find(int64_t layer, Role role) const {
    const LayerRepair& repairs = layers.at(static_cast<size_t>(layer));
    const auto found = repairs.find(role);
    return found == repairs.end() ? nullptr : &found->second;
  }
};

}  // namespace elastify::nn
