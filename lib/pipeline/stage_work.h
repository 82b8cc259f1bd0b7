#pragma once

#include <string_view>

#include "model/spec.h"
#include "pipeline/config.h"
#include "pipeline/open_model.h"

namespace elastify::pipeline {

/// The options and the source model of one run.
struct RunContext {
  const RunConfig& config;
  ModelSpec spec;      ///< of the source model
  bool force = false;  ///< start over, unfinished work included

  fs::path product(std::string_view stage) const;
  OpenModel open_source() const { return open_model(config.model, config.tokenizer); }
};

/// Makes the product of a stage from the products of the stages that it needs.
using StageWork = void (*)(const RunContext& run);
StageWork work_of(std::string_view stage);

}  // namespace elastify::pipeline
