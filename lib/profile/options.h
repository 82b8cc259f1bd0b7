#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/profile.h"

namespace elastify::profile {

struct ProfileOptions {
  std::vector<std::string> data;  ///< text files, or "self": text sampled from the model
  std::vector<Metric> metrics{Metric::kTaylor};
  int64_t tokens = 6400;          ///< calibration tokens, as in the paper; 0: all of the data
  int64_t seq = 256;              ///< tokens per sequence
  int64_t batch = 4;              ///< sequences per forward pass
  int64_t removal_tokens = 2048;  ///< tokens for the layer-removal loss; 0: not measured
  int64_t seed = 0;               ///< which sequences, what is sampled, random metric
};

}  // namespace elastify::profile
