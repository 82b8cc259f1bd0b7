#pragma once

#include <string_view>

namespace elastify {

/// The tool's version, taken from the CMake project. `elastify --version` shows it, and every artifact
/// records it.
inline constexpr std::string_view kVersion = ELASTIFY_VERSION;

}  // namespace elastify
