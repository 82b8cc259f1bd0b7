#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"

// Finds the runtimes on this machine, and loads GGUF files in them.

namespace elastify::pipeline {

enum class RuntimeKind : uint8_t { kLlamaCpp, kNodeLlamaCpp, kLlamaNode };

struct Runtime {
  RuntimeKind kind = RuntimeKind::kLlamaCpp;
  fs::path path;        ///< llama-bench, or the folder of the package
  std::string version;  ///< of the package; empty for llama.cpp
};

/// "llama.cpp", "node-llama-cpp", "llama.node"
std::string name_of(RuntimeKind kind);

/// Finds the runtimes asked for, or all. It looks for llama.cpp's llama-bench in PATH. It looks for the
/// packages node-llama-cpp and @fugood/llama.node by node's rules: from the current directory up, then in
/// NODE_PATH.
/// \param wanted  NAME or NAME=PATH, where PATH is a folder that contains the runtime; empty: all
/// \throws UsageError  for an unknown name, or a runtime that is not found, with the searched folders
/// \throws Error  if none is asked for and none is found, with a hint how to get one
std::vector<Runtime> find_runtimes(const std::vector<std::string>& wanted);

struct LoadJob {
  fs::path model, adapter;  ///< adapter: empty for none
  int64_t n_vocab = 1;
  int64_t n_prompt = 128, n_generate = 32;  ///< tokens
  int threads = 0;                          ///< 0: the machine's cores
  double limit_seconds = 300;
};

struct LoadOutcome {
  std::optional<bool> loads;  ///< whether it loads, reads the prompt and generates; none: not supported here
  double prompt_tokens_per_second = 0, generation_tokens_per_second = 0;  ///< of three rounds
  int64_t peak_rss_bytes = 0;  ///< of the process, including node itself and mapped pages of the file
  double seconds = 0;          ///< from start to end of the process
  std::string message;         ///< the runtime's error message if it does not load
};

/// Loads the file in a separate process, so that a crash of the runtime is reported as an outcome.
/// \throws Interrupted
LoadOutcome load_in(const Runtime& runtime, const LoadJob& job);

}  // namespace elastify::pipeline
