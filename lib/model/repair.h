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

/// A level's repair of one tensor of a layer, float32 at the level's widths. Absent parts are empty. A norm
/// has a weight only.
struct TensorRepair {
  std::optional<HostTensor> weight;  ///< replaces the full model's: [out, in] of a matrix, [n] of a norm
  std::optional<HostTensor> a, b;    ///< adapter, b a is added to the matrix: [rank, in], [out, rank]
  std::optional<HostTensor> bias;    ///< added to the product, beside the model's own bias, [out]

  int64_t rank() const { return a ? a->shape[0] : 0; }
  bool is_empty() const { return !weight && !a && !b && !bias; }
};

/// Repairs of a layer's tensors: kQuery, kKey, kValue, kAttnOut, kGate, kUp, kDown, kAttnNorm, kFfnNorm.
using LayerRepairs = std::map<Role, TensorRepair>;

/// All repairs of one level.
struct LevelRepairs {
  double nominal = 1;
  Compensation compensation = Compensation::kNone;  ///< requested from the fit; parts() may be fewer
  std::vector<LayerRepairs> layers;                 ///< [n_layers]
  std::optional<HostTensor> output_norm = {};       ///< replaces the full model's weights, [D]

  /// \returns null if the tensor has no repair; layer -1 never has one
  const TensorRepair* find(int64_t layer, Role role) const;
  const TensorRepair* find(const TensorSpec& tensor) const { return find(tensor.layer, tensor.role); }
  /// The tensor's repair, which is created if there is none.
  TensorRepair& at(const TensorSpec& tensor) {
    return layers.at(static_cast<size_t>(tensor.layer))[tensor.role];
  }
  /// The parts that are present.
  Compensation parts() const;
};

/// Empty repairs of a level.
LevelRepairs empty_repairs(const ModelSpec& spec, double nominal,
                           Compensation compensation = Compensation::kNone);

/// The seven matrices of a layer: q, k, v, o, gate, up, down.
bool is_layer_matrix(Role role);
/// The bias of one of the seven matrices: kQueryBias for kQuery.
Role bias_of(Role matrix);
/// The matrix of a bias: kQuery for kQueryBias; none for other roles.
std::optional<Role> matrix_of(Role bias);
/// The tensors that a level may repair, by layer and in file order: the seven matrices and the two norms.
/// Halves of layers that the level leaves out have none.
std::vector<const TensorSpec*> repairable_tensors(const ModelSpec& spec, const Widths& widths);
/// The name of a matrix's bias, "model.layers.3.mlp.down_proj.bias", whether or not the model has that
/// tensor.
std::string bias_name(const TensorSpec& matrix);

/// The directory of a level's repairs inside a reordered directory: `repairs/level-050`.
fs::path repairs_directory(const fs::path& reordered, double nominal);

/// Writes repair.json, adapter_model.safetensors and adapter_config.json (PEFT's layout) if there are
/// adapters, weights.safetensors if there are biases, weights or norms; see docs/formats.md.
/// \param directory  is created
/// \throws Error     if the repairs do not fit the level, see load_repairs()
void save_repairs(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                  const fs::path& directory);

/// Writes only the adapters, in PEFT's layout: adapter_config.json and adapter_model.safetensors, f32.
/// \param base_model  value of `base_model_name_or_path`; empty: the key is left out
void save_adapters(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                   const std::string& base_model, const fs::path& directory);
/// Loads adapters on any of the seven matrices from such a directory, which PEFT may have written. The scale
/// alpha / rank is multiplied into b.
/// \throws Error  see load_repairs()
LevelRepairs load_adapters(const fs::path& directory, const ModelSpec& spec, const Level& level);

/// Loads the repairs that save_repairs() wrote, or a PEFT directory, which has no repair.json: see
/// load_adapters(). In the former, adapter files written by PEFT may replace ours.
/// \throws Error  naming file, tensor and both values, if a shape is not the level's, half an adapter is
///   missing, a tensor belongs to nothing, a number is not finite, or the repairs are another model's
LevelRepairs load_repairs(const fs::path& directory, const ModelSpec& spec, const Level& level);

/// Checks that the shapes are the level's, that every adapter has both halves, that all numbers are finite
/// float32, and that only tensors of the level have repairs.
/// \throws Error  naming the tensor
void check(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level);

/// Loads the repairs of a level of a reordered directory; none if it has none or the level is the full model.
std::optional<LevelRepairs> find_repairs(const fs::path& reordered, const ModelSpec& spec,
                                         const Level& level);

}  // namespace elastify
