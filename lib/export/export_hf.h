#pragma once

#include <nlohmann/json_fwd.hpp>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "export/level_repairs.h"
#include "io/sharded_safetensors.h"
#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "model/repair.h"

// Writes levels as Hugging Face directories for `transformers`, and their adapters in PEFT's layout.

namespace elastify::exporter {

struct HfExportOptions {
  std::optional<DType> type;             ///< of all tensors: f32, f16 or bf16; none: the stored type
  std::vector<double> levels;            ///< the plan's levels to write beside the full model; empty: all
  uint64_t shard_bytes = 5'000'000'000;  ///< larger weights are written in several files
};
/// The options as a manifest records them: "hf", "type", "levels".
nlohmann::ordered_json to_json(const HfExportOptions& options);

/// A directory of an artifact, as the manifest lists it.
struct HfDirectory {
  std::string name;  ///< "full", "level-050", "lora-050"
  double nominal = 1;
  int64_t n_params = 0;
  std::vector<WrittenFile> files;
  uint64_t bytes() const;  ///< of all files
};
struct HfLevel : HfDirectory {
  double decoder_ratio = 1, total_ratio = 1;
  std::string architecture;           ///< "LlamaForCausalLM"
  std::string compensation = "none";  ///< of the level, its adapter included
  bool has_tokenizer = false;
  std::optional<HfDirectory> adapter;
};

/// The model that a level's directory holds. It has the level's widths, and if repairs add biases, all biases
/// that config.json then switches on. Its family is one whose code in `transformers` takes these widths: a
/// llama whose number of heads does not divide d_model becomes a mistral, because llama's configuration
/// refuses such numbers. Without a window both compute the same.
/// \throws Error  with the reason if no family's config.json can express the model
ModelSpec hf_level_model(const ModelSpec& spec, const Level& level, const LevelRepairs* repairs);

/// Writes full/ and level-NNN/ (config.json, model.safetensors or shards with an index, the source
/// directory's tokenizer and generation_config.json), lora-NNN/ if a level has adapters, and
/// manifest.json. Every level holds byte prefixes of the full model's tensors. All levels are written in one
/// pass over the model. Memory: a slab of rows per level.
/// \param source  a reordered Hugging Face directory
/// \param directory  an existing, empty directory; left empty on failure
/// \returns the full model first, then the levels from wide to narrow
/// \throws Error  before anything is written, naming all levels that no config.json can express
/// \throws UsageError  for a level that the plan does not have, or a type that is not a float type
// Seven parameters: inputs with owners of their own, as in export_model().
std::vector<HfLevel> export_hf(const Checkpoint& source, const Permutation& permutation,
                               const ElasticPlan& plan, const HfExportOptions& options,
                               const std::vector<LevelRepairs>& repairs,
                               const nlohmann::ordered_json& configuration, const fs::path& directory);

/// The name of the directory of a level's adapter: "lora-050".
std::string hf_adapter_name(double nominal);
/// The repairs that the weights of such a directory state they hold; none for other directories.
HeldRepairs held_in_directory(const fs::path& directory);

}  // namespace elastify::exporter
