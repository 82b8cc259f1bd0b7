#pragma once

#include "cli/commands.h"
#include "model/plan.h"

namespace elastify::cli {

/// The levels with nominal and true ratios and widths, and the plan's notes.
Report describe(const ElasticPlan& plan, const ModelSpec& spec);

}  // namespace elastify::cli
