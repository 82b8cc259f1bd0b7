#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "io/tensor.h"
#include "model/compensation.h"
#include "model/plan.h"
#include "model/spec.h"

namespace elastify {

/// What a level has of its own for one tensor of a layer, float32 at the level's widths; absent where there
/// is none. A norm has a weight only.
struct TensorRepair {
  std::optional<HostTensor> weight;  ///< replaces the full model's: [out, in] of a matrix, [n] of a norm
  std::optional<HostTensor> a, b;    ///< adapter, b a is added to the matrix: [rank, in], [out, rank]
  std::optional<HostTensor> bias;    ///< added to the product, beside the model's own bias, [out]

  int64_t rank() const { return a ? a->shape[0] : 0; }
  bool is_empty() const { return !weight && !a && !b && !bias; }
};

/// By the role of the tensor: kQuery, kKey, kValue, kAttnOut, kGate, kUp, kDown, kAttnNorm, kFfnNorm.
using LayerRepairs = std::map<Role, TensorRepair>;

/// All that a level has of its own.
struct LevelRepairs {
  double nominal = 1;
  Compensation compensation = Compensation::kNone;  ///< what was fitted; parts() may have less
  std::vector<LayerRepairs> layers;                 ///< [n_layers]
  std::optional<HostTensor> output_norm = {};       ///< weights instead of the full model's, [D]

  /// \returns null where the layer's tensor has nothing of its own; there is no layer -1
  const TensorRepair* find(int64_t layer, Role role) const;
  const TensorRepair* find(const TensorSpec& tensor) const { return find(tensor.layer, tensor.role); }
  /// The tensor's, which is made if there is none.
  TensorRepair& at(const TensorSpec& tensor) {
    return layers.at(static_cast<size_t>(tensor.layer))[tensor.role];
  }
  /// Which parts there are.
  Compensation parts() const;
};

/// Repairs of a level without anything in them.
LevelRepairs empty_repairs(const ModelSpec& spec, double nominal,
                           Compensation compensation = Compensation::kNone);

/// The seven matrices of a layer: q, k, v, o, gate, up, down.
bool is_layer_matrix(Role role);
/// kQueryBias of kQuery, for the seven matrices.
Role bias_of(Role matrix);
/// kQuery of kQueryBias; none for roles that are no bias.
std::optional<Role> matrix_of(Role bias);
/// The tensors that a level may have repairs of, by layer and in file order: the seven matrices and the two
/// norms. Halves of layers that the level leaves out have none.
std::vector<const TensorSpec*> repairable_tensors(const ModelSpec& spec, const Widths& widths);
/// "model.layers.3.mlp.down_proj.bias" for that matrix, whether or not the model has such a tensor.
std::string bias_name(const TensorSpec& matrix);

/// Where a reordered directory has the repairs of a level: `repairs/level-050`.
fs::path repairs_directory(const fs::path& reordered, double nominal);

/// Writes repair.json, adapter_model.safetensors and adapter_config.json (PEFT's layout) if there are
/// adapters, weights.safetensors if there are biases, weights or norms; see docs/formats.md.
/// \param directory  is made
/// \throws Error     if the repairs do not fit the level: as load_repairs()
void save_repairs(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                  const fs::path& directory);

/// The adapters alone, as PEFT loads them: adapter_config.json and adapter_model.safetensors, f32.
/// \param base_model  what `base_model_name_or_path` says; empty: it is left out
void save_adapters(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                   const std::string& base_model, const fs::path& directory);
/// Adapters on any of the seven matrices out of such a directory, which PEFT may have written; the scale
/// alpha / rank is multiplied into b.
/// \throws Error  as load_repairs()
LevelRepairs load_adapters(const fs::path& directory, const ModelSpec& spec, const Level& level);

/// Repairs that save_repairs() wrote, or a directory of PEFT's, without repair.json: see load_adapters().
/// PEFT's files may take the place of adapters in the former, too.
/// \throws Error  naming file, tensor and both values: shapes that are not the level's, half an adapter,
///   tensors that belong to nothing, numbers that are not finite, another model's
LevelRepairs load_repairs(const fs::path& directory, const ModelSpec& spec, const Level& level);

/// Shapes as the level has them, both halves of every adapter, finite float32 numbers, and nothing for a
/// tensor that the level does not have.
/// \throws Error  naming the tensor
void check(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level);

/// The repairs of a reordered directory's level; none where it has none or the level is the full model.
std::optional<LevelRepairs> find_repairs(const fs::path& reordered, const ModelSpec& spec,
                                         const Level& level);

}  // namespace elastify
