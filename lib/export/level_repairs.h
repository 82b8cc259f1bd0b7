#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/repair.h"

// What of a level's repairs goes into the level's own file: biases, weights and the output norm. Adapters
// have a file of their own.

namespace elastify::exporter {

/// "baked+bias+norm", or a part of that, or empty: which repairs the level's file itself holds.
std::string held_in_file(const LevelRepairs& repairs);

/// The level's tensors with the biases that the repairs add, each behind its matrix.
/// \throws Error  for models whose graph in stock llama.cpp takes no biases there
ModelSpec with_biases(ModelSpec model, const LevelRepairs& repairs);

/// The bias that the level's file has behind this matrix and the model does not, [D]; none otherwise.
std::optional<HostTensor> added_bias(const ModelSpec& spec, const TensorSpec& matrix,
                                     const LevelRepairs& repairs);

/// Whether something else than the tensor's prefix stands in the level's file.
bool is_replaced(const TensorSpec& tensor, const LevelRepairs& repairs);

/// What stands in the level's file instead of a tensor of the model: refitted weights or the level's output
/// norm in `type`, or the bias with the repair's added. None: the tensor's own prefix.
/// \param bias  the tensor, f32, if it is a vector
/// \param importance  of the columns, see encode_row(); null: none
std::optional<HostTensor> replaced(const TensorSpec& tensor, const HostTensor& bias,
                                   const LevelRepairs& repairs, DType type,
                                   const float* importance = nullptr);

}  // namespace elastify::exporter
