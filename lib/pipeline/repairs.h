#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/repair.h"
#include "pipeline/steps.h"

namespace elastify::pipeline {

/// What compensation is fitted on and how it is computed.
struct Calibration {
  profile::ProfileOptions text;  ///< data, tokens, seq, batch
  nn::DecoderOptions compute;
  std::string max_ram;  ///< larger models are streamed; empty: no limit
};

/// The text that repairs are fitted on: the profile's, as much of it as they take.
profile::ProfileOptions fitting_text(const profile::ProfileOptions& profiled, const ReorderSection& options);

/// The calibration text, as ids, int64 [B, T].
std::vector<at::Tensor> calibration_batches(const OpenModel& source, const nn::Decoder& decoder,
                                            const profile::ProfileOptions& text, int64_t seed);
/// The same for fits: what would be one batch is parted, so that some of it can be held out.
std::vector<at::Tensor> fitting_batches(const OpenModel& source, const nn::Decoder& decoder,
                                        const profile::ProfileOptions& text, int64_t seed);

/// Fits every level of the plan but the full model, and writes `repairs/level-NNN/` into the reordered
/// directory.
/// \param source  the model that it was made from, for its vocabulary
/// \param reordered  complete but for its repairs
/// \throws UsageError  if there is no text
void write_repairs(const OpenModel& source, const ElasticPlan& plan,
                   const recover::ClosedFormOptions& options, const Calibration& calibration, int64_t seed,
                   const fs::path& reordered);

/// The repairs that a forward pass of a level takes.
struct AppliedRepairs {
  Compensation parts = Compensation::kNone;  ///< of an artifact, with those that the level's file holds
  nn::LevelRepair level;                     ///< no layers: the weights as they are
  const nn::LevelRepair* pointer() const { return level.layers.empty() ? nullptr : &level; }
};
/// Repairs of a level of a reordered directory or an artifact (there, biases and own weights are in the
/// level's file, and only the adapter is left to apply).
/// \param model  what open_model() gave for `path` and `level`
/// \param wanted  false: leaves off what can be left off
AppliedRepairs repairs_of(const fs::path& path, std::optional<double> level, const OpenModel& model,
                          const nn::Decoder& decoder, bool wanted);

}  // namespace elastify::pipeline
