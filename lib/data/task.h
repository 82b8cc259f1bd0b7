#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"

namespace elastify {

/// A multiple-choice question scored by log-likelihood. Each choice has a context (usually the same for all)
/// and a continuation, whose log-probability counts. The texts are as in the file. If neither side brings a
/// space, one belongs between them.
struct TaskItem {
  std::vector<std::string> contexts;       ///< one per choice
  std::vector<std::string> continuations;  ///< one per choice
  int64_t gold = 0;
};

/// Loads a JSONL file with one item a line. An item is {query, choices, gold}, {context_options,
/// continuation, gold}, or {context, continuation} (LAMBADA: one choice, right if the continuation is the
/// greedy one).
/// \throws Error  naming file and line
std::vector<TaskItem> load_task(const fs::path& file);

}  // namespace elastify
