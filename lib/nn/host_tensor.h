#pragma once

#include <ATen/core/Tensor.h>

#include "io/tensor.h"

namespace elastify::nn {

/// The elements of a float tensor where they lie, kept alive by the result; never write to it. A copy only
/// where the bytes are not aligned.
/// \throws Error  for quantised types
at::Tensor as_tensor(const HostTensor& source);

}  // namespace elastify::nn
