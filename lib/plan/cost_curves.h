#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/profile.h"

namespace elastify::plan {

/// The cost of keeping only the k most important units of each space: the expected rise of the loss, in the
/// same unit for all spaces.
struct CostCurves {
  /// [spaces][n_units + 1]; cost[s][n_units] = 0. Index 0, the dropped space, is used only with elastic
  /// depth. A curve need not be convex, nor even monotone.
  std::vector<std::vector<double>> cost;
  std::string source;  ///< description of the source, for the plan's file and for people
};

/// Makes curves from scores alone: a cost is the sum of the scores of the units left out, which leave in
/// order of importance. Negative scores count as 0. Measured curves serve better, because a score is about
/// one unit alone. The sums do not see what units share or make up for, and those of many neurons overstate
/// the cost of removing them, compared with few KV groups.
/// \throws Error  if the profile is of another model, lacks the metric, or has scores that are not numbers
CostCurves curves_from_scores(const ModelSpec& spec, const Profile& profile, Metric metric);

/// Returns the scores of a metric, [spaces][n_units], the most important unit first.
/// \throws Error  as curves_from_scores()
std::vector<std::vector<double>> falling_scores(const ModelSpec& spec, const Profile& profile, Metric metric);

/// Makes the curves non-increasing in the width: no width costs less than a wider one (a running maximum from
/// the full width down). This evens out noise and the rises of a greedy order.
/// \throws Error  naming the space, for curves of another model or costs that are not numbers
CostCurves non_increasing(const ModelSpec& spec, CostCurves curves);

/// Loss of the sub-model with these widths, for example its divergence from the full model on calibration
/// data. Lower is better; a loss that is not finite counts as the worst.
using MeasureLoss = std::function<double(const Widths&)>;

}  // namespace elastify::plan
