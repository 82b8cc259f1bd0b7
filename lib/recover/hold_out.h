#pragma once

#include <algorithm>
#include <cstddef>

namespace elastify::recover {

inline constexpr size_t kHoldOutEvery = 5;

/// Whether part `i` of the calibration text, of `n`, is held out of a fit to choose something by: every
/// fifth; of fewer, the last; of one alone, none.
constexpr bool is_held_out(size_t i, size_t n) {
  return n > 1 && i % kHoldOutEvery == std::min(n, kHoldOutEvery) - 1;
}

}  // namespace elastify::recover
