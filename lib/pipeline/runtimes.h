#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"

// Runtimes that are installed on this machine, and what one of them makes of a GGUF file.

namespace elastify::pipeline {

enum class RuntimeKind : uint8_t { kLlamaCpp, kNodeLlamaCpp, kLlamaNode };

struct Runtime {
  RuntimeKind kind = RuntimeKind::kLlamaCpp;
  fs::path path;        ///< llama-bench, or the folder of the package
  std::string version;  ///< of the package; empty for llama.cpp
};

/// "llama.cpp", "node-llama-cpp", "llama.node"
std::string name_of(RuntimeKind kind);

/// The runtimes asked for, or all that there are: llama.cpp by its llama-bench in PATH, the packages
/// node-llama-cpp and @fugood/llama.node by node's rules from the current directory up, then in NODE_PATH.
/// \param wanted  NAME or NAME=PATH, PATH being a folder that has the runtime; empty: all
/// \throws UsageError  for a name that is not known, or a runtime that is not there, with what was searched
/// \throws Error  if none is asked for and there is none, with how to get one
std::vector<Runtime> find_runtimes(const std::vector<std::string>& wanted);

struct LoadJob {
  fs::path model, adapter;  ///< adapter: empty for none
  int64_t n_vocab = 1;
  int64_t n_prompt = 128, n_generate = 32;  ///< tokens
  int threads = 0;                          ///< 0: the machine's cores
  double limit_seconds = 300;
};

struct LoadOutcome {
  std::optional<bool> loads;  ///< loads, reads the prompt and generates; none: this runtime cannot be asked
  double prompt_tokens_per_second = 0, generation_tokens_per_second = 0;  ///< of three rounds
  int64_t peak_rss_bytes = 0;  ///< of the process, node's own and mapped pages of the file included
  double seconds = 0;          ///< from start to end of the process
  std::string message;         ///< the runtime's own words if it does not load
};

/// Loads the file in a process of its own, so that a crash is an outcome.
/// \throws Interrupted
LoadOutcome load_in(const Runtime& runtime, const LoadJob& job);

}  // namespace elastify::pipeline
