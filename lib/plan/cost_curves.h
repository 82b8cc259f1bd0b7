#pragma once

#include <string>
#include <vector>

#include "model/profile.h"

namespace elastify::plan {

/// What it costs to keep only the k most important units of each space: the expected rise of the loss, in one
/// unit for all spaces.
struct CostCurves {
  /// [spaces][n_units + 1]; cost[s][n_units] = 0. Index 0, the space dropped, counts only where depth is
  /// elastic. Need not be convex, nor even monotone.
  std::vector<std::vector<double>> cost;
  std::string source;  ///< in words, for the plan's file and for people
};

/// Out of scores alone: the sum of the scores of the units left out, which leave in order of importance.
/// Negative scores count as 0. Scores are one by one: what units share or make up for is not in the sums, and
/// those of many neurons add up to more, against those of few KV groups, than their removal costs; curves
/// that were measured serve better.
/// \throws Error  if the profile is another model's, lacks the metric, or has scores that are not numbers
CostCurves curves_from_scores(const ModelSpec& spec, const Profile& profile, Metric metric);

/// The scores of a metric, [spaces][n_units], the most important unit first.
/// \throws Error  as curves_from_scores()
std::vector<std::vector<double>> falling_scores(const ModelSpec& spec, const Profile& profile, Metric metric);

/// The curves, never rising with the width: no width is taken to cost less than a wider one (a running
/// maximum from the full width down), which evens out noise and the rises of a greedy order.
/// \throws Error  naming the space, for curves of another model or costs that are not numbers
CostCurves non_increasing(const ModelSpec& spec, CostCurves curves);

}  // namespace elastify::plan
