#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>
#include <vector>

#include "data/vocabulary.h"
#include "export/options.h"
#include "model/checkpoint.h"
#include "model/imatrix.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "model/repair.h"

namespace elastify::exporter {

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

/// A model file of an artifact, as the manifest lists it.
struct ArtifactFile {
  std::string name;  ///< "level-050.gguf"
  std::string type;  ///< "q8_0", "q4_k_m"; also the folder, if there are several types
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

/// Writes full.gguf, level-NNN.gguf for every level below 1, and manifest.json. Matrices are encoded once for
/// the full model; each level holds byte prefixes of the same rows and blocks. With several types, each
/// type gets a folder that is such an artifact, and the manifest at the top lists the folders. All files are
/// written in one pass over the model, see write_tensors(). A file has only the tensors that its architecture
/// asks for, since stock llama.cpp refuses extra tensors.
/// \param source  a reordered model; a tokenizer.gguf beside it gives the tokenizer's keys verbatim
/// \param vocabulary  null: the files say that they have no vocabulary
/// \param permutation  provenance: its digest goes into every file
/// \param configuration  resolved options, for the manifest
/// \param directory  an existing, empty directory; left empty on failure
/// \param imatrix  measured on the model before it was reordered; null: none. K-quants are encoded by it.
///   imatrix.gguf and one imatrix-NNN.gguf per level are written, with columns and tensor names as in the
///   models' files
/// \param repairs  of the reordered model's levels: biases and own weights go into the level's file, an
///   adapter into lora-NNN.gguf
/// \returns by type, full.gguf first, then the levels from wide to narrow; for a packed file, the files that
///   slicing gives
/// \throws Error  before anything is written, if a level has no architecture or a width that a type cannot
///   hold, the vocabulary has more tokens than the model, `imatrix` is another model's, or a level's repairs
///   have biases that its graph does not take
/// \throws UsageError  for a level that the plan does not have, or if `max_ram` is too small
// Nine parameters: each is an input of its own kind with its own owner. A struct of them would have one user.
std::vector<ArtifactFile> export_model(const Checkpoint& source, const Vocabulary* vocabulary,
                                       const Permutation& permutation, const ElasticPlan& plan,
                                       const ExportOptions& options,
                                       const nlohmann::ordered_json& configuration, const fs::path& directory,
                                       const Imatrix* imatrix = nullptr,
                                       const std::vector<LevelRepairs>& repairs = {});

}  // namespace elastify::exporter
