#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "export/weight_type.h"
#include "options/forward.h"

namespace elastify::exporter {

struct ExportOptions {
  std::vector<WeightType> types = {DType::kF16};  ///< of matrices; norms and biases stay f32
  std::vector<double> levels;                     ///< some of the plan's levels; empty: all
  DType adapter_type = DType::kF16;               ///< of adapters: f32 or f16
  bool packed = false;                            ///< write one model.gguf that holds all files, see packed.h
  bool shared_common = false;  ///< write splits that share the embeddings, see share_common()
  std::string imatrix = {};    ///< importance matrix or profile of the source model; empty: none
  int64_t max_ram = 0;         ///< memory of this process, bytes; 0: no limit. Declared for the whole run
};
void declare(options::Options& options, ExportOptions& fields);
/// The resolved options as a manifest records them.
nlohmann::ordered_json to_json(const ExportOptions& options);

}  // namespace elastify::exporter
