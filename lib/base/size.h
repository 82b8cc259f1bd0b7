#pragma once

#include <cstdint>
#include <string>

namespace elastify {

/// Parses a size in bytes: "4GiB", "512MiB", "2GB", "1000000".
/// \throws UsageError
int64_t parse_bytes(const std::string& text);
std::string format_bytes(int64_t bytes);  ///< "1.50 GiB"

}  // namespace elastify
