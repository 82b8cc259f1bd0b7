#pragma once

#include <cstdint>

namespace elastify {

/// Bytes of this process that are in memory now, mapped files included.
int64_t resident_bytes();
/// The most there ever were.
int64_t peak_resident_bytes();

}  // namespace elastify
