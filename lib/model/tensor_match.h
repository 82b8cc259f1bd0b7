#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/tensor.h"

namespace elastify {

/// "a, b, c and 7 more"
std::string list_some(const std::vector<std::string>& items, size_t most = 4);

/// Compares the tensors that a model needs with those that a file holds.
/// \param ignorable  whether an additional tensor of this name is harmless
/// \throws Error  listing missing tensors, tensors of another shape and unexpected ones, with a hint if the
///   names show the reason
void require_match(const std::vector<TensorInfo>& expected, const std::vector<TensorInfo>& found,
                   const std::function<bool(const std::string& name)>& ignorable);

}  // namespace elastify
