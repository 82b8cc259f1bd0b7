#pragma once

#include "base/output_lock.h"
#include "cli/commands.h"
#include "model/plan.h"
#include "model/profile.h"
#include "plan/cost_curves.h"

namespace elastify::cli {

/// Claims the plan and its plot, see claim().
std::vector<OutputLock> claim_outputs(const Invocation& call, const PlanCommand& command);

/// Writes a plan, and its plot if one is asked for, and returns a report on it.
/// \param profile, curves  for --explain; may be null
Report write_plan(const PlanCommand& command, const ElasticPlan& plan, const ModelSpec& spec,
                  const Profile* profile, const plan::CostCurves* curves);

}  // namespace elastify::cli
