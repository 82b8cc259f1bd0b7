#pragma once

#include <ATen/core/Tensor.h>

#include "io/tensor.h"

namespace elastify::nn {

/// A view of the elements of a float tensor, which the result keeps alive. Do not write to it. It is a copy
/// only if the bytes are not aligned.
/// \throws Error  for quantised types
at::Tensor as_tensor(const HostTensor& source);

}  // namespace elastify::nn
