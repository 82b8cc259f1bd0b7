#pragma once

#include <nlohmann/json_fwd.hpp>

#include "pipeline/sweep_config.h"

namespace elastify::pipeline {

/// Ranks, plans and evaluates at every point of the grid, into `config.base.output`:
///
///   sweep.csv  sweep.json  sweep.svg  config.json
///
/// Points with the same profiling options share one profile, which measures all metrics that they need
/// together. The model is never written: each point's order is applied in memory. Points with the same order,
/// widths and repairs share an evaluation; all points share that of the full model. Each profile and
/// evaluation is kept as soon as it is complete, under a key of its content (model, text, options, order,
/// widths, tool version). Kept results are not computed again, so an interrupted sweep can be continued and
/// gives the same files.
/// \param force  discards kept results
/// \returns the contents of sweep.json
/// \throws Error  naming the point that fails; plans that need no profile are made before anything is
///   measured
nlohmann::ordered_json sweep(SweepConfig config, bool force);

}  // namespace elastify::pipeline
