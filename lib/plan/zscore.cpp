#include <algorithm>
#include <cmath>

#include "plan/methods.h"

namespace elastify::plan {
namespace {

/// A step of a space to the next width of its ladder, taken when the falling threshold passes `threshold`.
struct Widening {
  double threshold;
  size_t space;
  int64_t width, weight;  ///< width after the step, and the weight that the step adds
};

/// (score - mean) / standard deviation over the space; 0 where all scores are equal.
std::vector<double> standardised(std::vector<double> scores) {
  const auto n = static_cast<double>(scores.size());
  double mean = 0, square = 0;
  for (const double score : scores) mean += score / n;
  for (const double score : scores) square += (score - mean) * (score - mean) / n;
  const double deviation = std::sqrt(square);
  for (double& score : scores) score = deviation > 0 ? (score - mean) / deviation : 0;
  return scores;
}

}  // namespace

std::vector<Widths> solve_zscore(const Problem& problem, const std::vector<std::vector<double>>& scores) {
  Widths widths = problem.narrowest();
  problem.require_reachable(widths, problem.half_step());
  std::vector<Widening> widenings;
  for (size_t space = 0; space < widths.size(); ++space) {
    const std::vector<double> z = standardised(scores[space]);
    const std::vector<int64_t>& ladder = problem.ladders[space];
    for (size_t i = 1; i < ladder.size(); ++i) {
      // From this many units above the threshold on, their number is nearer to this width than to the one
      // before.
      const int64_t nearest = (ladder[i - 1] + ladder[i] + 1) / 2;
      widenings.push_back({z[static_cast<size_t>(nearest - 1)], space, ladder[i],
                           problem.scale.per_unit(space) * (ladder[i] - ladder[i - 1])});
    }
  }
  std::stable_sort(widenings.begin(), widenings.end(),
                   [](const Widening& a, const Widening& b) { return a.threshold > b.threshold; });

  std::vector<Widths> result;
  int64_t weight = problem.scale.of(widths);
  auto next = widenings.begin();
  for (const int64_t target : problem.targets) {
    // Spaces widen as long as that comes nearer to the target.
    for (; next != widenings.end() && weight + next->weight - target <= target - weight; ++next) {
      widths[next->space] = next->width;
      weight += next->weight;
    }
    result.push_back(widths);
  }
  return result;
}

}  // namespace elastify::plan
