#pragma once

#include <cstdint>

namespace elastify {

/// Resident memory of this process in bytes, mapped files included.
int64_t resident_bytes();
/// Peak resident memory of this process so far, in bytes.
int64_t peak_resident_bytes();

}  // namespace elastify
