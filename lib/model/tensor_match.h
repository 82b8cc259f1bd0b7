#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/tensor.h"

namespace elastify {

/// "a, b, c and 7 more"
std::string list_some(const std::vector<std::string>& items, size_t most = 4);

/// Compares what a model needs with what a file holds. `ignorable` says which further names do no harm.
/// \throws Error listing what is missing, what has another shape and what is not expected, with a hint
///         where the names give the reason away
void require_match(const std::vector<TensorInfo>& expected, const std::vector<TensorInfo>& found,
                   const std::function<bool(const std::string& name)>& ignorable);

}  // namespace elastify
