#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "options/forward.h"

namespace elastify {

/// Text to read as token sequences, and how much of it.
struct TextOptions {
  std::vector<std::string> data;  ///< .txt, .jsonl or .json files; or "self": sampled from the model
  int64_t tokens = 0;             ///< 0: all of the text
  int64_t seq = 256;              ///< tokens per sequence
  int64_t batch = 4;              ///< sequences per forward pass
  int64_t seed = 0;               ///< draws sequences over the whole text
};

/// Declares `data`, `tokens`, `seq` and `batch`; the seed is the run's.
/// \param purpose  what the text is for: "calibration"
void declare_text(options::Options& options, TextOptions& text, const std::string& purpose);

}  // namespace elastify
