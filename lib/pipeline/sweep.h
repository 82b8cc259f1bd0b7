#pragma once

#include <nlohmann/json_fwd.hpp>

#include "pipeline/config.h"

namespace elastify::pipeline {

/// Ranks, plans and evaluates at every point of the grid, into `config.base.output`:
///
///   sweep.csv  sweep.json  sweep.svg  config.json
///
/// Points that differ in nothing that is measured share one profile, in which all metrics that they need are
/// measured together. The model is never written: each point's order is applied in memory, and points with
/// the same order and widths share the evaluation, the full model all of them. An evaluation is kept by
/// content (model, text, options, order, widths, tool version) as soon as it is known, and so is a profile;
/// what is kept is not computed again, so that a sweep that was interrupted ends with the same files.
/// \param force  forgets what is kept
/// \returns what sweep.json holds
/// \throws Error  naming the point that fails; plans that need no profile are made before anything is
/// measured
nlohmann::ordered_json sweep(const SweepConfig& config, bool force);

}  // namespace elastify::pipeline
