#pragma once

#include <cstdint>

#include "options/forward.h"

namespace elastify::pipeline {

struct VerifyOptions {
  double tolerance = 1e-4;  ///< of logits, relative to their standard deviation, float32
  int64_t tokens = 64;      ///< length of the sequence that logits are compared on
  int64_t seed = 0;         ///< the run's
  int64_t max_ram = 0;      ///< the run's, bytes; 0: no limit
};
/// Declares `tolerance` and `tokens`.
void declare(options::Options& options, VerifyOptions& fields);

}  // namespace elastify::pipeline
