#pragma once

#include <string>

namespace elastify::nn {

struct DecoderOptions {
  std::string device = "cpu";  ///< "cpu", "cuda", "cuda:1"
  std::string dtype = "f32";   ///< compute type: f32, bf16, f16
  bool streamed = false;       ///< hold one layer's weights at a time
};

}  // namespace elastify::nn
