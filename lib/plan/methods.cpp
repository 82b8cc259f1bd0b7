#include "plan/methods.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace elastify::plan {

int64_t least_width(const AxisSpace& space, int64_t grid, double min_width) {
  const int64_t step = space.kind == SpaceKind::kMlp ? grid : 1;
  // A share that is a whole number of units, but for rounding, counts as that number.
  const auto units =
      static_cast<int64_t>(std::ceil(min_width * static_cast<double>(space.n_units) - 1 / kLevelRounding));
  return std::min(space.n_units, std::max<int64_t>((units + step - 1) / step, 1) * step);
}

Problem::Problem(const ModelSpec& of, const PlanOptions& options)
    : spec(of),
      scale(of, options.budget),
      grid(options.grid),
      min_width(options.min_width),
      depth(options.depth),
      levels(normalised_levels(options.levels)) {
  levels.pop_back();
  for (const double level : levels) targets.push_back(scale.target(level));
  for (const AxisSpace& space : spec.spaces) {
    const int64_t step = space.kind == SpaceKind::kMlp ? grid : 1;
    auto& ladder = ladders.emplace_back();
    for (int64_t width = least_width(space, grid, min_width); width < space.n_units; width += step)
      ladder.push_back(width);
    ladder.push_back(space.n_units);
  }
}

bool Problem::may_drop(size_t space) const {
  const AxisSpace& of = spec.spaces[space];
  return depth && of.layer > 0 && (of.kind == SpaceKind::kAttention || of.layer + 1 < spec.n_layers);
}

Widths Problem::narrowest() const {
  Widths widths;
  for (size_t space = 0; space < ladders.size(); ++space)
    widths.push_back(may_drop(space) ? 0 : ladders[space].front());
  return widths;
}

int64_t Problem::half_step() const {
  for (const SpaceKind kind : {SpaceKind::kMlp, SpaceKind::kAttention}) {
    int64_t smallest = 0;
    for (size_t space = 0; space < ladders.size(); ++space) {
      if (spec.spaces[space].kind != kind) continue;
      for (size_t i = 1; i < ladders[space].size(); ++i) {
        const int64_t step = scale.per_unit(space) * (ladders[space][i] - ladders[space][i - 1]);
        smallest = smallest == 0 ? step : std::min(smallest, step);
      }
    }
    if (smallest > 0) return smallest / 2;
  }
  return 0;
}

void Problem::require_reachable(const Widths& least, int64_t slack) const {
  if (levels.empty()) return;
  const int64_t weight = scale.of(least);
  if (weight <= targets[0] + slack) return;
  int64_t groups = 0, neurons = 0;
  for (size_t space = 0; space < ladders.size(); ++space) {
    int64_t& most = spec.spaces[space].kind == SpaceKind::kMlp ? neurons : groups;
    most = std::max(most, least[space] > 0 ? least[space] : ladders[space].front());
  }
  const double lowest = scale.share(weight);
  const std::string of_groups = groups == 1 ? "one KV group" : fmt::format("{} KV groups", groups);
  const std::string hint = min_width > 0                  ? "; a smaller min_width goes lower"
                           : neurons == grid && grid > 32 ? "; a finer grid goes lower"
                                                          : "";
  throw OutOfReach(
      fmt::format("level {}: the narrowest widths ({}, {} MLP neurons{}) keep {:.4f} of the {}", levels[0],
                  of_groups, neurons, depth ? ", all layers dropped that may be" : "", lowest, scale.noun()),
      fmt::format("the lowest ratio that can be met is {:.4f}{}", std::ceil(lowest * 1e4) / 1e4, hint));
}

}  // namespace elastify::plan
