#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "data/vocabulary.h"
#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/plan.h"

namespace elastify::exporter {

struct ExportOptions {
  DType type = DType::kF16;    ///< of matrices; norms and biases stay f32
  std::vector<double> levels;  ///< which of the plan's levels; empty: all
};

/// A file of an artifact, as the manifest lists it.
struct ArtifactFile {
  std::string name;          ///< "level-050.gguf"
  double nominal = 1;
  std::string architecture;  ///< GGUF's
  uint64_t bytes = 0;
  int64_t n_params = 0;
  std::string sha256;
};

/// The GGUF architecture whose graph in stock llama.cpp computes this sub-model. The family's own where all layers are equally wide
/// and its loader takes the widths; deci otherwise; openelm for tied qwen3.
/// \throws Error  with the reason where no stock architecture can
std::string gguf_architecture(const ModelSpec& spec, const Widths& widths);

/// Writes full.gguf and level-XXX.gguf for every level below 1, and manifest.json, into an existing, empty directory. Matrices are encoded
/// once for the full model; each level holds byte prefixes of the same rows and blocks.
/// \param source      a reordered model
/// \param permutation provenance: its digest goes into every file
/// \param configuration  resolved options, for the manifest
/// \throws Error  before anything is written, if a level has no architecture or a width that `type` cannot carry
std::vector<ArtifactFile> export_model(const Checkpoint& source, const Vocabulary* vocabulary, const Permutation& permutation,
                                       const ElasticPlan& plan, const ExportOptions& options,
                                       const nlohmann::ordered_json& configuration, const fs::path& directory);

}  // namespace elastify::exporter
