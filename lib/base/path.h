#pragma once

#include <filesystem>

namespace elastify {

/// "out" for "out/" and "out/.". It does not touch "..", which behind a link is elsewhere than it looks.
std::filesystem::path without_trailing_slash(std::filesystem::path path);

}  // namespace elastify
