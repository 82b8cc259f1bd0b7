#pragma once

#include "plan/make_plan.h"
#include "report/plan_view.h"

namespace elastify::plan {

/// Compares the widths of each layer with the prices and sensitivities that are known of it.
/// \param profile  for removal loss and influence; may be null
/// \param curves   for prices; may be null
report::PlanExplanation explain(const ModelSpec& spec, const ElasticPlan& plan, const Profile* profile,
                                const CostCurves* curves);

}  // namespace elastify::plan
