#pragma once

// What the planning methods share; make_plan() is what others call.

#include "plan/make_plan.h"

namespace elastify::plan {

/// Nominal ratios have six decimals, as level_name() and find_level() see them.
inline constexpr double kRounding = 1e6;
/// In rising order, without duplicates, the full model included.
/// \throws UsageError
std::vector<double> normalised(std::vector<double> levels);

/// What every method solves: widths for levels below the full model.
struct Problem {
  Problem(const ModelSpec& spec, const PlanOptions& options);

  const ModelSpec& spec;
  Scale scale;
  int64_t grid;
  double min_width;
  bool depth;
  std::vector<double> levels;                 ///< below 1, rising
  std::vector<int64_t> targets;               ///< [levels], in the scale's unit
  std::vector<std::vector<int64_t>> ladders;  ///< [spaces] widths to choose from, rising, the full one last

  bool may_drop(size_t space) const;  ///< some plan of this problem has width 0 there
  Widths narrowest() const;
  /// Half of the smallest step of a single MLP, or of a KV group where no MLP can take one: what a level may
  /// weigh beyond its target.
  int64_t half_step() const;
  /// \param least  the narrowest widths there are
  /// \param slack  what a level may weigh beyond its target
  /// \throws Error  if the lowest level is out of reach
  void require_reachable(const Widths& least, int64_t slack) const;
};

/// The least width of the space that `min_width` and the grid allow.
int64_t least_width(const AxisSpace& space, int64_t grid, double min_width);

/// Widths of every level, and what had to give way.
struct UniformSolution {
  std::vector<Widths> widths;     ///< [levels]
  std::vector<size_t> n_anchors;  ///< [levels] anchors that stayed full
  std::vector<int64_t> anchors;   ///< layers, most important first
};
/// \param anchors  layers that stay full, most important first
UniformSolution solve_uniform(const Problem& problem, std::vector<int64_t> anchors = {});
/// This share of the layers, of those whose removal costs most.
/// \param removal_loss  [n_layers]
std::vector<int64_t> choose_anchors(const std::vector<double>& removal_loss, double share);

/// Of all widths on the ladders (and dropped spaces, where depth is elastic) the ones of the least total cost
/// that weigh no more than half a smallest step beyond the target, each level within the next wider one.
/// Exact where the weights, counted in their greatest common divisor, are at most 32768 and a space has at
/// most 512 widths; beyond, sub-models whose weights differ by less than a 32768th of the level count as
/// equally heavy on the way, and what is left over is filled up at the end.
/// \param curves  non-increasing
/// \returns [levels]
std::vector<Widths> solve_dynamic(const Problem& problem, const CostCurves& curves);

/// Widens what still fits into `capacity` and within the level above, what lowers the cost most per weight
/// first. Dropped spaces stay dropped.
void fill_up(const Problem& problem, const CostCurves& curves, const Widths& above, int64_t capacity,
             Widths& widths);

/// \param profile  with block_influence
/// \returns [levels]
std::vector<Widths> solve_shortgpt(const Problem& problem, const Profile& profile);

/// \param scores  falling_scores()
/// \returns [levels]
std::vector<Widths> solve_zscore(const Problem& problem, const std::vector<std::vector<double>>& scores);

}  // namespace elastify::plan
