#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text_options.h"
#include "model/profile.h"
#include "options/forward.h"

namespace elastify::profile {

struct ProfileOptions {
  /// Calibration text; as many tokens as in the paper. A batch is also what is lost at most when the work is
  /// stopped.
  TextOptions text{.data = {}, .tokens = 6400};
  std::vector<Metric> metrics{Metric::kTaylor};
  int64_t removal_tokens = 1024;  ///< tokens for the layer-removal loss; 0: not measured
  bool second_moments = false;    ///< X^T X of the inputs of o and down
  std::string imatrix;            ///< llama.cpp's importance matrix, for the metric of this name
  double save_every = 60;         ///< seconds between saves of unfinished work
};
void declare(options::Options& options, ProfileOptions& fields);

/// How the work is done. It changes no result.
struct WorkOptions {
  /// Bytes that the process may hold; 0: no limit. A model that does not fit is streamed layer by layer.
  int64_t max_ram = 0;
  enum class Existing : uint8_t {
    kRefuse,           ///< leave unfinished work alone and stop
    kResume,           ///< go on with it; refuse if it was started with other options
    kResumeOrReplace,  ///< go on with it, or start over if it was started with other options
    kReplace,          ///< start over
  };
  Existing existing = Existing::kRefuse;
  double save_every = 60;  ///< seconds between saves of unfinished work
};

}  // namespace elastify::profile
