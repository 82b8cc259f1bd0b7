#pragma once

#include <algorithm>
#include <cstddef>

namespace elastify::recover {

inline constexpr size_t kHoldOutEvery = 5;

/// Whether part `i` of `n` of the calibration text is held out of a fit, to choose a hyperparameter by. Every
/// fifth part is; the last one if there are fewer than five; none if there is only one.
constexpr bool is_held_out(size_t i, size_t n) {
  return n > 1 && i % kHoldOutEvery == std::min(n, kHoldOutEvery) - 1;
}

}  // namespace elastify::recover
