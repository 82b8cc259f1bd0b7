#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "model/spec.h"

namespace elastify::nn {

/// Cosines and sines of the rotary angles, computed as far as positions are asked for. Layers with the same
/// rope base and scaling share a table.
class RopeTable {
 public:
  RopeTable(const LayerSpec& layer, int64_t head_dim, c10::Device device);
  /// Cosines and sines at positions [first, first + n), float32 [n, head_dim / 2]. Thread-safe.
  std::pair<at::Tensor, at::Tensor> at_positions(int64_t first, int64_t n) const;

 private:
  std::vector<float> frequencies_;  ///< radians per position, [head_dim / 2]
  c10::Device device_;
  mutable std::mutex mutex_;
  mutable at::Tensor cosines_, sines_;  ///< float32 [positions so far, head_dim / 2]
};

}  // namespace elastify::nn
