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
  int64_t batch = 4;              ///< sequences per pass; also what is lost at most when the work is stopped
  int64_t removal_tokens = 1024;  ///< tokens for the layer-removal loss; 0: not measured
  bool second_moments = false;    ///< X^T X of the inputs of o and down
  std::string imatrix;            ///< llama.cpp's importance matrix, for the metric of this name
  int64_t seed = 0;               ///< which sequences, what is sampled, random metric
};

/// What changes how the work is done, not what comes out of it.
struct WorkOptions {
  /// Bytes that the process may hold; 0: no limit. Where the model does not fit, it is streamed layer by
  /// layer.
  int64_t max_ram = 0;
  enum class Existing : uint8_t {
    kRefuse,           ///< do not touch unfinished work
    kResume,           ///< go on with it; refuse if it was started with other options
    kResumeOrReplace,  ///< go on with it, or start over if it was started with other options
  };
  Existing existing = Existing::kRefuse;
  double save_every = 60;  ///< seconds between saves of unfinished work
};

}  // namespace elastify::profile
