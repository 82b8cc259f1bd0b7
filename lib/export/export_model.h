#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>
#include <vector>

#include "data/vocabulary.h"
#include "export/weight_type.h"
#include "model/checkpoint.h"
#include "model/imatrix.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "model/repair.h"

namespace elastify::exporter {

struct ExportOptions {
  std::vector<WeightType> types = {DType::kF16};  ///< of matrices; norms and biases stay f32
  std::vector<double> levels;                     ///< which of the plan's levels; empty: all
  DType adapter_type = DType::kF16;               ///< of adapters: f32 or f16
  bool packed = false;                            ///< one model.gguf that holds all files, see packed.h
  bool shared_common = false;  ///< share_common(): splits that have the embeddings in common
  int64_t max_ram = 0;         ///< of this process, bytes; 0: not bounded
};

/// As resolved options are written down. `max_ram` changes no result.
nlohmann::ordered_json to_json(const ExportOptions& options);

/// An importance matrix beside a model's file, for quantising that file further.
struct ImatrixFile {
  std::string name;  ///< "imatrix-050.gguf" beside "level-050.gguf", "imatrix.gguf" beside "full.gguf"
  uint64_t bytes = 0;
  std::string sha256;
};

/// A level's adapter, for runtimes to load beside the level's file.
struct AdapterFile {
  std::string name;  ///< "lora-050.gguf" beside "level-050.gguf"
  uint64_t bytes = 0;
  int64_t n_params = 0;
  std::vector<std::pair<std::string, int64_t>> ranks;  ///< by the name of the matrix in the level's file
  std::string sha256;
};

/// A model's file of an artifact, as the manifest lists it.
struct ArtifactFile {
  std::string name;  ///< "level-050.gguf"
  std::string type;  ///< "q8_0", "q4_k_m"; with several types the folder that it is in
  double nominal = 1;
  double decoder_ratio = 1, total_ratio = 1;
  std::string architecture;  ///< GGUF's
  uint64_t bytes = 0;
  int64_t n_params = 0;
  double bits_per_weight = 0;  ///< of the tensors' data, norms and biases included
  std::string sha256;
  std::optional<ImatrixFile> imatrix;
  std::string compensation = "none";  ///< of the level, its adapter included
  std::optional<AdapterFile> adapter;
};

/// The GGUF architecture whose graph in stock llama.cpp computes this sub-model. The family's own where all
/// layers are equally wide and its loader takes the widths; deci otherwise; openelm for tied qwen3.
/// \throws Error  with the reason where no stock architecture can
std::string gguf_architecture(const ModelSpec& spec, const Widths& widths);

/// Writes full.gguf, level-NNN.gguf for every level below 1, and manifest.json. Matrices are encoded once for
/// the full model; each level holds byte prefixes of the same rows and blocks. With several types, each has a
/// folder that is such an artifact of its own, and the manifest at the top lists the folders. All files are
/// written in one pass over the model, see write_tensors(). Only what the architecture asks for is written,
/// since stock llama.cpp refuses extra tensors.
/// \param source  a reordered model; a tokenizer.gguf beside it gives the tokenizer's keys verbatim
/// \param vocabulary  null: the files say that they have no vocabulary
/// \param permutation  provenance: its digest goes into every file
/// \param configuration  resolved options, for the manifest
/// \param directory  an existing, empty directory; left empty on failure
/// \param imatrix  measured on the model before it was reordered: K-quants are encoded by it, and
///   imatrix.gguf and one imatrix-NNN.gguf per level are written, with columns and tensor names as the
///   models' files have them; null: none
/// \param repairs  of the reordered model's levels: biases and own weights go into the level's file, an
///   adapter into lora-NNN.gguf
/// \returns by type, full.gguf first, then the levels from wide to narrow; in a packed file, what slicing
///   gives
/// \throws Error  before anything is written, if a level has no architecture or a width that a type cannot
///   carry, the vocabulary has more tokens than the model, `imatrix` is another model's, or the graph of a
///   level takes no biases and its repairs have some
/// \throws UsageError  for a level that the plan does not have, or a `max_ram` that is too little
std::vector<ArtifactFile> export_model(const Checkpoint& source, const Vocabulary* vocabulary,
                                       const Permutation& permutation, const ElasticPlan& plan,
                                       const ExportOptions& options,
                                       const nlohmann::ordered_json& configuration, const fs::path& directory,
                                       const Imatrix* imatrix = nullptr,
                                       const std::vector<LevelRepairs>& repairs = {});

}  // namespace elastify::exporter
