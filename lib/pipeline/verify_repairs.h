#pragma once

#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/plan.h"
#include "model/repair.h"
#include "nn/options.h"
#include "pipeline/artifact.h"
#include "pipeline/verify_options.h"

// Verifies repairs. The source does not have them, so only their shapes, the finiteness of their numbers and
// the places where they are applied can be checked.

namespace elastify::pipeline {

/// The tensors of a level's file that are the level's own instead of leading parts of the full model's.
class OwnTensors {
 public:
  OwnTensors() = default;
  explicit OwnTensors(exporter::HeldRepairs held) : held_(std::move(held)) {}

  bool any() const { return held_.parts != Compensation::kNone; }
  /// Whether this tensor may differ from the leading part.
  bool may_replace(const TensorSpec& tensor) const;
  /// Whether the source may lack this tensor: a bias.
  bool may_add(const TensorSpec& tensor) const;
  /// Whether it must be zeros: a bias that is there only because others are.
  bool is_filler(const TensorSpec& tensor) const;

 private:
  exporter::HeldRepairs held_;
};
/// The own tensors that the file or Hugging Face directory states; none for files without repairs.
OwnTensors own_tensors(const fs::path& level_file);

/// Checks a tensor of the level's own: finite numbers, or zeros in a filler.
/// \throws Error  naming the first wrong element
void check_own_tensor(const TensorSpec& tensor, const HostTensor& found, bool is_filler);

bool has_repairs(const fs::path& output, bool artifact);
/// Checks the repairs of a reordered directory, or the adapters of an artifact's plain files, against the
/// levels' shapes.
/// \returns a description of them, by level
/// \throws Error  naming file, tensor and both values
std::string check_repairs(const fs::path& output, bool artifact, const ModelSpec& spec,
                          const ElasticPlan& plan);

/// Compares the logits of a level's file with those of the full model at the level's widths, with the file's
/// own biases, weights and norms applied.
/// \returns the largest difference, relative to the logits' standard deviation
double repaired_logit_difference(const Checkpoint& full, const Checkpoint& level_file, const OwnTensors& own,
                                 const Level& level, const VerifyOptions& options,
                                 const nn::DecoderOptions& compute);

}  // namespace elastify::pipeline
