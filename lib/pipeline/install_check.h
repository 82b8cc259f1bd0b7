#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "pipeline/runtimes.h"

namespace elastify::pipeline {

struct InstallOptions {
  std::vector<std::string> runtimes;  ///< see find_runtimes(); empty: all that are found
  LoadJob job;                        ///< tokens, threads and time limit of every file
  bool for_latency_table = false;     ///< first refuse input that latency_rows() cannot compare
};

/// One file in one runtime.
struct InstallRow {
  std::string file;     ///< path inside the artifact, "q8_0/level-050.gguf"
  std::string adapter;  ///< "lora-050.gguf"; empty: the model alone
  double level = 1;
  int64_t n_params = 0;  ///< elements of the model's tensors; 0 if we cannot read the file ourselves
  RuntimeKind runtime = RuntimeKind::kLlamaCpp;
  LoadOutcome outcome;
};

struct InstallReport {
  std::vector<Runtime> runtimes;
  std::vector<InstallRow> rows;
  bool all_load() const;
};

/// Loads every model of an artifact, alone and with its level's adapter, in every runtime. A packed artifact
/// gives the packed file itself (the full model) and every level sliced from it. `path` may also be a single
/// GGUF file.
/// \throws Error  if no runtime is found, or the path holds no models
/// \throws UsageError  for a latency table of several runtimes or types
InstallReport check_install(const fs::path& path, const InstallOptions& options);

/// Measured times as `llama-bench -o json` lists them, which LatencyTable reads: models without adapters.
/// \throws Error  if fewer than two models load
nlohmann::ordered_json latency_rows(const InstallReport& report, const LoadJob& job);

}  // namespace elastify::pipeline
