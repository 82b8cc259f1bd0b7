#include "plan/cost_curves.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "base/error.h"

namespace elastify::plan {

std::vector<std::vector<double>> falling_scores(const ModelSpec& spec, const Profile& profile,
                                                Metric metric) {
  if (profile.spec_hash != spec_hash(spec))
    throw Error("the profile was measured on another model",
                "measure one on this model with `elastify profile`");
  if (needs_second_moments(metric))
    throw Error(fmt::format("{} orders units but gives them no scores", name_of(metric)),
                "plan by a metric with scores, such as taylor");
  const auto measured = profile.importance.find(metric);
  if (measured == profile.importance.end()) {
    std::vector<std::string_view> names;
    for (const auto& [known, values] : profile.importance) names.push_back(name_of(known));
    throw Error(
        fmt::format("the profile has no {} importance, only: {}", name_of(metric),
                    names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))),
        fmt::format("run `elastify profile` with the metric {}, or plan by another", name_of(metric)));
  }
  if (measured->second.size() != spec.spaces.size())
    fail("{} importance: expected {} spaces, got {}", name_of(metric), spec.spaces.size(),
         measured->second.size());
  std::vector<std::vector<double>> scores;
  for (size_t space = 0; space < spec.spaces.size(); ++space) {
    const std::vector<float>& values = measured->second[space];
    if (static_cast<int64_t>(values.size()) != spec.spaces[space].n_units)
      fail("{}: expected {} importance of {} units, got {}", spec.spaces[space].name, name_of(metric),
           spec.spaces[space].n_units, values.size());
    for (size_t unit = 0; unit < values.size(); ++unit)
      if (!std::isfinite(values[unit]))
        fail("{}: {} importance of unit {} is {}", spec.spaces[space].name, name_of(metric), unit,
             values[unit]);
    auto& falling = scores.emplace_back(values.begin(), values.end());
    std::sort(falling.begin(), falling.end(), std::greater<>());
  }
  return scores;
}

CostCurves curves_from_scores(const ModelSpec& spec, const Profile& profile, Metric metric) {
  CostCurves curves;
  curves.source = fmt::format("sums of the {} scores of the units left out", name_of(metric));
  for (const std::vector<double>& scores : falling_scores(spec, profile, metric)) {
    auto& cost = curves.cost.emplace_back(scores.size() + 1, 0.0);
    for (size_t k = scores.size(); k-- > 0;) cost[k] = cost[k + 1] + std::max(scores[k], 0.0);
  }
  return curves;
}

CostCurves non_increasing(const ModelSpec& spec, CostCurves curves) {
  if (curves.cost.size() != spec.spaces.size())
    fail("cost curves: expected {} spaces, got {}", spec.spaces.size(), curves.cost.size());
  for (size_t space = 0; space < curves.cost.size(); ++space) {
    const AxisSpace& of = spec.spaces[space];
    auto& cost = curves.cost[space];
    if (static_cast<int64_t>(cost.size()) != of.n_units + 1)
      fail("cost curves: {}: expected costs of 0 to {} units, got {} costs", of.name, of.n_units,
           cost.size());
    for (size_t k = cost.size(); k-- > 0;) {
      if (!std::isfinite(cost[k])) fail("cost curves: {}: keeping {} units costs {}", of.name, k, cost[k]);
      if (k + 1 < cost.size()) cost[k] = std::max(cost[k], cost[k + 1]);
    }
  }
  return curves;
}

}  // namespace elastify::plan
