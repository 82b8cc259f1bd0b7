#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/repair.h"
#include "model/rope_order.h"

// Determines which tensors repairs change in a level's own file: weights, biases and norms. Adapters have a
// separate file.

namespace elastify::exporter {

/// Which repairs a level's file or directory holds, as it states them.
struct HeldRepairs {
  Compensation parts = Compensation::kNone;
  std::vector<std::string> own_tensors;  ///< see kOwnTensorsKey
};
/// Holds name_of(HeldRepairs::parts), in GGUF files and safetensors metadata.
inline constexpr const char* kRepairsKey = "elastify.repairs";
/// Lists the level's own tensors that kRepairsKey does not imply (is_own_by_default()), by the names that
/// they have without fused q, k and v. It is a list of strings in GGUF files, and one string with commas in
/// safetensors metadata.
inline constexpr const char* kOwnTensorsKey = "elastify.own_tensors";
/// Whether the held parts imply that a tensor of this role is the level's own: weights of o and down for
/// kBaked, their biases for kBias, the output norm for kNorm.
bool is_own_by_default(Role role, Compensation held);

/// The parts of the repairs that the level's file itself holds: all but adapters.
Compensation held_in_file(const LevelRepairs& repairs);
/// The tensors to list under kOwnTensorsKey.
/// \param model  of the level's file
std::vector<const TensorSpec*> listed_tensors(const ModelSpec& model, const LevelRepairs& repairs);

/// The level's spec with the biases that the repairs add, each after its matrix. If one of q, k and v gets a
/// bias, all three do, since stock loaders and config.json have them together.
/// \throws Error  for models whose graph in stock llama.cpp takes no biases
ModelSpec with_biases(ModelSpec model, const LevelRepairs& repairs);

/// How a file holds a tensor.
struct Encoding {
  DType type = DType::kF32;
  RopeOrder rope = RopeOrder::kHalves;  ///< of the rows of q and k
  const float* importance = nullptr;    ///< of the columns, see encode_row(); null: none
};

/// The bias that the level's file adds after this matrix, f32 at the level's width; zeros if this layer's
/// repairs have none. None: the file has no such bias, or the model itself has one.
std::optional<HostTensor> added_bias(const ModelSpec& spec, const TensorSpec& matrix, const Widths& widths,
                                     const LevelRepairs& repairs, RopeOrder rope);

/// Whether the level's file holds something other than the tensor's leading part.
bool is_replaced(const TensorSpec& tensor, const LevelRepairs& repairs);

/// The contents that replace a tensor of the model in the level's file: the level's own weights, or the sum
/// of the model's bias and the repair's. None: the file holds the tensor's leading part.
/// \param bias  the model's tensor, f32 and in the file's order, if it is a vector
std::optional<HostTensor> replaced(const ModelSpec& spec, const TensorSpec& tensor, const HostTensor& bias,
                                   const LevelRepairs& repairs, const Encoding& encoding);

}  // namespace elastify::exporter
