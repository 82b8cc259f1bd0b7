#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/repair.h"
#include "model/rope_order.h"

// Repairs that go into the level's own file: weights, biases and norms. Adapters have a file of their own.

namespace elastify::exporter {

/// Which repairs a level's file or directory holds, as it states them.
struct HeldRepairs {
  Compensation parts = Compensation::kNone;
  std::vector<std::string> own_tensors;  ///< see kOwnTensorsKey
};
/// Holds name_of(HeldRepairs::parts), in GGUF files and safetensors metadata.
inline constexpr const char* kRepairsKey = "elastify.repairs";
/// Names the level's own tensors that the parts do not stand for (is_own_by_default()), by the names that the
/// model's file would give them if q, k and v were not one tensor. A list of strings in GGUF files, one
/// string with commas in safetensors metadata.
inline constexpr const char* kOwnTensorsKey = "elastify.own_tensors";
/// Weights of o and down where weights are held, their biases where biases are, the output norm.
bool is_own_by_default(Role role, Compensation held);

/// Which parts of the repairs the level's file itself holds: all but adapters.
Compensation held_in_file(const LevelRepairs& repairs);
/// The tensors to be listed under kOwnTensorsKey.
/// \param model  of the level's file
std::vector<const TensorSpec*> listed_tensors(const ModelSpec& model, const LevelRepairs& repairs);

/// The level's tensors with the biases that the repairs add, each behind its matrix. Biases of q, k and v
/// come together, as stock loaders and config.json have them.
/// \throws Error  for models whose graph in stock llama.cpp takes no biases
ModelSpec with_biases(ModelSpec model, const LevelRepairs& repairs);

/// How a file holds a tensor.
struct Encoding {
  DType type = DType::kF32;
  RopeOrder rope = RopeOrder::kHalves;  ///< of the rows of q and k
  const float* importance = nullptr;    ///< of the columns, see encode_row(); null: none
};

/// The bias that the level's file has behind this matrix and the model does not, f32 at the level's width;
/// zeros in a layer without one. None: the file has no such bias, or the model has it, too.
std::optional<HostTensor> added_bias(const ModelSpec& spec, const TensorSpec& matrix, const Widths& widths,
                                     const LevelRepairs& repairs, RopeOrder rope);

/// Whether something else than the tensor's leading part stands in the level's file.
bool is_replaced(const TensorSpec& tensor, const LevelRepairs& repairs);

/// The contents of the level's file in place of a tensor of the model: its own weights, or the sum of the
/// model's bias and the repair's. None: the tensor's leading part.
/// \param bias  the tensor, f32 and in the file's order, if it is a vector
std::optional<HostTensor> replaced(const ModelSpec& spec, const TensorSpec& tensor, const HostTensor& bias,
                                   const LevelRepairs& repairs, const Encoding& encoding);

}  // namespace elastify::exporter
