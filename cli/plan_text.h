#pragma once

#include "cli/commands.h"
#include "model/plan.h"
#include "plan/explain.h"

namespace elastify::cli {

/// The levels with nominal and true ratios and widths, and the plan's notes.
Report describe(const ElasticPlan& plan, const ModelSpec& spec);

/// Which layers stayed wide, and why, added to the report; as `explain` in JSON.
void add_explanation(Report& report, const plan::Explanation& explained);
/// Heat maps of the shares kept, levels by layers: attention and MLP.
std::string explanation_svg(const plan::Explanation& explained, const std::string& title);

}  // namespace elastify::cli
