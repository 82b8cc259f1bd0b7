#pragma once

#include "model/plan.h"
#include "model/profile.h"
#include "plan/cost_curves.h"
#include "plan/options.h"

namespace elastify::plan {

/// Solves the widths of every level for its true share of the budget. A level is off by at most half a grid
/// step of the MLP width, unless nesting forbids that. No width shrinks at a higher level.
///
/// For `uniform` and `anchors`, a grid step is one of all layers that carry the budget. Their KV groups
/// follow the ratio as closely as whole groups can, and the MLP makes up the difference. For the other
/// methods, a grid step is one of a single layer, and KV groups go where the method finds them cheap.
///
/// Notes say which levels gave up anchors and which shares are off by more than a percentage point. If layers
/// have widths of their own, a grid step is the limit for that note if it is less.
/// \param profile  needed by `anchors` (removal_loss), `shortgpt` (block_influence), `zscore` and, without
///                 curves, `dp`; otherwise may be null
/// \param curves   used by `dp` and `dp+kl`; null: curves_from_scores() of the profile
/// \param measure  needed by `dp+kl`
/// \throws Error  if a level cannot be met even at the narrowest widths (one KV group, one grid step, or what
///                `min_width` and `depth` allow), naming the lowest ratio that can; if the profile is of
///                another model or lacks what the method needs
/// \throws UsageError  for levels outside (0, 1] and other options out of range
ElasticPlan make_plan(const ModelSpec& spec, const Profile* profile, const PlanOptions& options,
                      const CostCurves* curves = nullptr, const MeasureLoss& measure = nullptr);

/// The lowest level that can be met: the narrowest widths as a share of the budget, rounded up.
double lowest_level(const ModelSpec& spec, const PlanOptions& options);

}  // namespace elastify::plan
