#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/repair.h"
#include "pipeline/text.h"
#include "recover/options.h"

namespace elastify::pipeline {

/// Fits repairs of these levels on the calibration text. With options.guard, it logs one line per level about
/// what the guard shrank or dropped.
/// \param decoder  the full model, units in order of importance
/// \returns the repairs of each level; empty if nothing helps
std::vector<nn::LevelRepair> fit_repairs(const OpenModel& source, const nn::Decoder& decoder,
                                         const std::vector<Level>& levels,
                                         const recover::ClosedFormOptions& options, const TextOptions& text);

/// Fits repairs of every level of the plan but the full model, and writes them to `repairs/level-NNN/` in the
/// reordered directory.
/// \param source  the model that the directory was made from, for its vocabulary
/// \param reordered  complete but for its repairs
/// \throws UsageError  if there is no text
void write_repairs(const OpenModel& source, const ElasticPlan& plan,
                   const recover::ClosedFormOptions& options, const Calibration& calibration,
                   const fs::path& reordered);

/// The repairs that a forward pass of a level applies.
struct AppliedRepairs {
  Compensation parts = Compensation::kNone;  ///< including those that an artifact's file itself holds
  nn::LevelRepair level;                     ///< no layers: nothing to apply
  const nn::LevelRepair* pointer() const { return level.layers.empty() ? nullptr : &level; }
};
/// Loads the repairs of a level of a reordered directory or an artifact. A level's file in an artifact
/// already holds biases and own weights, so only the adapter has to be applied.
/// \param model  result of open_model() for `path` and `level`
/// \param wanted  false: apply no repairs; warns of those that the level's file itself holds
AppliedRepairs repairs_of(const fs::path& path, std::optional<double> level, const OpenModel& model,
                          const nn::Decoder& decoder, bool wanted);

}  // namespace elastify::pipeline
