#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"

namespace elastify {

/// A multiple-choice question scored by log-likelihood. Each choice has a context (usually the same) and a
/// continuation whose log-probability counts. Texts are as in the file: a space belongs between the two when
/// neither side brings one.
struct TaskItem {
  std::vector<std::string> contexts;       ///< one per choice
  std::vector<std::string> continuations;  ///< one per choice
  int64_t gold = 0;
};

/// JSONL, one item a line: {query, choices, gold}; {context_options, continuation, gold}; or {context,
/// continuation} (LAMBADA: one choice; right when the continuation is the greedy one).
/// \throws Error  naming file and line
std::vector<TaskItem> load_task(const fs::path& file);

}  // namespace elastify
