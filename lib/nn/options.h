#pragma once

#include <string>

#include "options/forward.h"

namespace elastify::nn {

struct DecoderOptions {
  std::string device = "cpu";  ///< "cpu", "cuda", "cuda:1"
  std::string dtype = "f32";   ///< compute type: f32, bf16, f16
  bool streamed = false;       ///< hold one layer's weights at a time; follows from --max-ram
};
/// Declares `device` and `dtype`.
void declare(options::Options& options, DecoderOptions& fields);

}  // namespace elastify::nn
