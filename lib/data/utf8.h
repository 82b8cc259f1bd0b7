#pragma once

#include <cstddef>
#include <string_view>

namespace elastify {

/// Bytes of the longest prefix that is well-formed UTF-8 (no surrogates, no overlong forms, at most
/// U+10FFFF).
size_t valid_utf8_prefix(std::string_view text);

inline bool is_utf8(std::string_view text) {
  return valid_utf8_prefix(text) == text.size();
}

}  // namespace elastify
