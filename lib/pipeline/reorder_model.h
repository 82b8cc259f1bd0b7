#pragma once

#include "model/plan.h"
#include "pipeline/config.h"
#include "pipeline/widths.h"

namespace elastify::pipeline {

/// Ranks, plans and writes the reordered directory, with the repairs of its levels.
/// \param evidence  a profile if the metric or the plan needs one; text if widths or repairs need it
/// \param given     a plan of this model to use instead of making one; null: none
/// \param replace   whether `output` may exist
/// \returns the plan
ElasticPlan write_reordered(const OpenModel& model, const Evidence& evidence, const RunConfig& config,
                            const fs::path& output, bool replace, const ElasticPlan* given = nullptr);

/// The text that repairs are fitted on: `fit_tokens` tokens of the calibration text.
Calibration fitting_calibration(const RunConfig& config);
/// The calibration text as the configuration states it.
Calibration calibration_of(const RunConfig& config);

}  // namespace elastify::pipeline
