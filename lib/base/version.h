#pragma once

#include <string_view>

namespace elastify {

/// The tool's version, as in "elastify --version" and in every artifact: the CMake project's.
inline constexpr std::string_view kVersion = ELASTIFY_VERSION;

}  // namespace elastify
