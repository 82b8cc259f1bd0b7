#pragma once

#include <nlohmann/json_fwd.hpp>

#include "pipeline/config.h"

namespace elastify::pipeline {

/// Profile, reorder, export, verify and evaluate, in this order, into `config.output`:
///
/// profile.h5 reordered/ artifact/ verify.json eval.json report.json report.svg config.json
///
/// A step whose inputs (by content), options and tool version are those of its last completion is not run
/// again (`force` runs all).
/// \returns the report: one entry per level with nominal and true ratio, parameters, bytes, perplexity,
///   tokens/s
/// \throws Error  if a step fails; what was completed stays and is reused by the next run
nlohmann::ordered_json run(const RunConfig& config, bool force);

}  // namespace elastify::pipeline
