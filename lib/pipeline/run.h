#pragma once

#include <nlohmann/json_fwd.hpp>

#include "pipeline/config.h"

namespace elastify::pipeline {

/// Runs all stages in their order, into `config.output`:
///
/// profile.h5 reordered/ artifact/ verify.json eval.json report.json report.svg config.yaml
///
/// A stage is skipped if its inputs (by content), options and tool version have not changed since it was last
/// completed. `force` runs all stages.
/// \returns the report: one entry per level with nominal and true ratio, parameters, bytes, perplexity,
///   tokens/s
/// \throws Error  if a stage fails; products of completed stages remain, and the next run reuses them
nlohmann::ordered_json run(RunConfig config, bool force);

}  // namespace elastify::pipeline
