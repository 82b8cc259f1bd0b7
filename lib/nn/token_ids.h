#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace elastify::nn {

/// Sequences of one length as a batch, int64 [B, T].
/// \throws Error  if their lengths differ
at::Tensor stack_ids(std::span<const std::vector<int32_t>> sequences);

}  // namespace elastify::nn
