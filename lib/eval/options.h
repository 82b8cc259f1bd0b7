#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text_options.h"
#include "options/forward.h"

namespace elastify::eval {

struct EvalOptions {
  TextOptions text{.data = {}, .tokens = 0, .seq = 256, .batch = 8};  ///< held-out text
  std::vector<std::string> tasks;                                     ///< multiple-choice items, .jsonl
  int64_t items = 0;      ///< the first ones of every task; 0: all
  bool baseline = false;  ///< also measure a random order at every level
};
void declare(options::Options& options, EvalOptions& fields);

}  // namespace elastify::eval
