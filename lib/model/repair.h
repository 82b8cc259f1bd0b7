#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "io/tensor.h"
#include "model/plan.h"
#include "model/spec.h"

namespace elastify {

/// What makes up for the inputs of one matrix (o or down, [D, columns] at the level's widths) that a level
/// leaves out, float32; absent where there is none.
struct MatrixRepair {
  std::optional<HostTensor> weight;  ///< instead of the leading columns of the full weights, [D, columns]
  std::optional<HostTensor> a, b;    ///< plus b a: [rank, columns], [D, rank]; both or neither
  std::optional<HostTensor> bias;    ///< plus a constant, [D]

  int64_t rank() const { return a ? a->shape[0] : 0; }
};
struct LayerRepairs {
  MatrixRepair attention_out, down;
};

/// All repairs of one level.
struct LevelRepairs {
  double nominal = 1;
  std::string compensation;                    ///< how they were made: "adapter+bias+norm"
  std::vector<LayerRepairs> layers;            ///< [n_layers]
  std::optional<HostTensor> output_norm = {};  ///< weights instead of the full model's, [D]

  bool has_adapters() const;
  bool has_biases() const;
  int64_t n_own_weights() const;  ///< matrices that are no prefix of the full model's
};

/// A matrix of a layer that can be repaired, and its repair.
struct RepairPlace {
  const TensorSpec* tensor = nullptr;  ///< o or down
  MatrixRepair* repair = nullptr;
};
struct ConstRepairPlace {
  const TensorSpec* tensor = nullptr;
  const MatrixRepair* repair = nullptr;
};
/// o and down of layer 0, of layer 1, ...; matrices that the level leaves out whole are not among them.
std::vector<RepairPlace> repair_places(LevelRepairs& repairs, const ModelSpec& spec, const Widths& widths);
std::vector<ConstRepairPlace> repair_places(const LevelRepairs& repairs, const ModelSpec& spec,
                                            const Widths& widths);
/// "model.layers.3.mlp.down_proj.bias" for that matrix, whether or not the model has such a tensor.
std::string bias_name(const TensorSpec& matrix);

/// Where a reordered directory has the repairs of a level: `repairs/level-050`.
fs::path repairs_directory(const fs::path& reordered, double nominal);

/// Writes repair.json, adapter_model.safetensors and adapter_config.json (PEFT's layout) if there are
/// adapters, weights.safetensors if there are biases, weights or an output norm; see docs/formats.md.
/// \param directory  is made
/// \throws Error     if the repairs do not fit the level: as load_repairs()
void save_repairs(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                  const fs::path& directory);

/// The adapters alone, as PEFT loads them: adapter_config.json and adapter_model.safetensors, f32.
/// \param base_model  what `base_model_name_or_path` says; empty: it is left out
void save_adapters(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                   const std::string& base_model, const fs::path& directory);
/// What is in such a directory; its scale alpha / rank is multiplied into b.
/// \throws Error  as load_repairs()
LevelRepairs load_adapters(const fs::path& directory, const ModelSpec& spec, const Level& level);

/// Repairs that save_repairs() wrote, or an adapter that PEFT trained in their place. An adapter's scale
/// alpha / rank is multiplied into b.
/// \throws Error  naming file, tensor and both values: shapes that are not the level's, half an adapter,
///   tensors that belong to nothing, numbers that are not finite, another model's
LevelRepairs load_repairs(const fs::path& directory, const ModelSpec& spec, const Level& level);

/// Shapes as the level has them, both halves of every adapter, finite float32 numbers.
/// \throws Error  naming the tensor
void check(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level);

/// The repairs of a reordered directory's level; none where it has none or the level is the full model.
std::optional<LevelRepairs> find_repairs(const fs::path& reordered, const ModelSpec& spec,
                                         const Level& level);

}  // namespace elastify
