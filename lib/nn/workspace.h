#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

namespace elastify::nn {

/// Memory for the large intermediate results of a forward pass, reused by every layer.
class Workspace {
 public:
  enum class Slot : uint8_t { kNorm, kQuery, kKey, kValue, kMixed, kGate, kUp, kLogits };

  /// \returns [rows, columns], uninitialised; a later call for the same slot reuses its memory
  at::Tensor get(Slot slot, int64_t rows, int64_t columns, const at::TensorOptions& options);

 private:
  std::array<at::Tensor, static_cast<size_t>(Slot::kLogits) + 1> storage_;
};

}  // namespace elastify::nn
