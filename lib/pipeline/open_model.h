#pragma once

#include <memory>
#include <optional>
#include <string>

#include "data/vocabulary.h"
#include "model/checkpoint.h"
#include "model/plan.h"
#include "nn/options.h"
#include "pipeline/artifact.h"

namespace elastify::pipeline {

/// An open model and its vocabulary.
struct OpenModel {
  Checkpoint checkpoint;
  std::optional<Vocabulary> vocabulary;
  std::optional<ElasticPlan> plan;                    ///< of a reordered directory
  std::shared_ptr<const PlainFiles> files = nullptr;  ///< of an artifact
  std::string permutation_digest = {};                ///< of a reordered directory
};

/// Opens a model, a reordered directory, or one file of an artifact (its full model, or the level asked for).
/// \throws Error  if `level` is asked of something without levels
OpenModel open_model(const fs::path& path, const fs::path& tokenizer, std::optional<double> level = {});

/// Share of the decoder weights that a level keeps, from the plan beside it; 1 if there are no levels.
double true_ratio(const fs::path& path, std::optional<double> level);

}  // namespace elastify::pipeline
