#pragma once

#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/plan.h"
#include "model/repair.h"
#include "nn/options.h"
#include "pipeline/verify.h"

// What verification knows of repairs: they are no part of the source, so that shapes, finite numbers and
// where they are applied is what can be checked.

namespace elastify::pipeline {

/// Which tensors of a level's file are the level's own instead of a prefix of the full model's.
struct OwnTensors {
  bool weights = false;  ///< o and down
  bool biases = false;   ///< of o and down
  bool norm = false;     ///< the output norm
  bool any() const { return weights || biases || norm; }
  /// Whether this tensor may differ from the prefix.
  bool may_replace(const TensorSpec& tensor) const;
  /// Whether the source may lack this tensor: biases.
  bool may_add(const TensorSpec& tensor) const;
};
/// Biases of q, k, v, gate and up: where the source lacks them they are zeros, there because o or down has
/// one.
bool is_filler(const TensorSpec& tensor);
/// As the file or Hugging Face directory states it; nothing for files without repairs.
OwnTensors own_tensors(const fs::path& level_file);

/// A tensor of the level's own: finite numbers, and zeros in a filler.
/// \throws Error
void check_own_tensor(const TensorSpec& tensor, const HostTensor& found);

bool has_repairs(const fs::path& output, bool artifact);
/// Repairs of a reordered directory, or adapters of an artifact's plain files, against the levels' shapes.
/// \returns what there is, by level
/// \throws Error  naming file, tensor and both values
std::string check_repairs(const fs::path& output, bool artifact, const ModelSpec& spec,
                          const ElasticPlan& plan);

/// Logits of a level's file against the full model's at the level's widths with the file's own biases,
/// weights and output norm in their places: largest difference over their standard deviation.
double repaired_logit_difference(const Checkpoint& full, const Checkpoint& level_file, const OwnTensors& own,
                                 const Level& level, const VerifyOptions& options,
                                 const nn::DecoderOptions& compute);

}  // namespace elastify::pipeline
