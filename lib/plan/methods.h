#pragma once

// Internals of the planning methods. Other code calls make_plan().

#include "base/error.h"
#include "model/levels.h"
#include "model/plan.h"
#include "plan/cost_curves.h"
#include "plan/options.h"

namespace elastify::plan {

/// A level that the narrowest widths still exceed.
class OutOfReach : public Error {
 public:
  using Error::Error;
};

/// The problem that every method solves: widths for the levels below the full model.
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

  bool may_drop(size_t space) const;  ///< whether a plan of this problem may have width 0 there
  Widths narrowest() const;
  /// Half of the smallest step of a single MLP, or of a KV group if no MLP can take a step. A level may weigh
  /// this much more than its target.
  int64_t half_step() const;
  /// \param least  the narrowest widths there are
  /// \param slack  what a level may weigh beyond its target
  /// \throws OutOfReach  if the lowest level is
  void require_reachable(const Widths& least, int64_t slack) const;
};

/// The smallest width of the space that `min_width` and the grid allow.
int64_t least_width(const AxisSpace& space, int64_t grid, double min_width);

/// Widths of every level, and how many anchors had to be given up.
struct UniformSolution {
  std::vector<Widths> widths;     ///< [levels]
  std::vector<size_t> n_anchors;  ///< [levels] anchors that stayed full
  std::vector<int64_t> anchors;   ///< layers, most important first
};
/// \param anchors  layers that stay full, most important first
UniformSolution solve_uniform(const Problem& problem, std::vector<int64_t> anchors = {});
/// Chooses this share of the layers: those whose removal costs most.
/// \param removal_loss  [n_layers]
std::vector<int64_t> choose_anchors(const std::vector<double>& removal_loss, double share);

/// Finds the widths of the least total cost, among all widths on the ladders (and dropped spaces, with
/// elastic depth). A level weighs at most half a smallest step more than its target and lies within the next
/// wider level.
///
/// The result is exact if the weights, in units of their greatest common divisor, are at most 32768 and no
/// space has more than 512 widths. Otherwise, sub-models whose weights differ by less than a 32768th of the
/// level count as equally heavy, and fill_up() spends what is left over.
/// \param curves  non-increasing
/// \returns [levels]
std::vector<Widths> solve_dynamic(const Problem& problem, const CostCurves& curves);

/// Widens what still fits into `capacity` and within the level above. The step that lowers the cost most per
/// weight comes first. Dropped spaces stay dropped.
void fill_up(const Problem& problem, const CostCurves& curves, const Widths& above, int64_t capacity,
             Widths& widths);

/// \param profile  with block_influence
/// \returns [levels]
std::vector<Widths> solve_shortgpt(const Problem& problem, const Profile& profile);

/// \param scores  falling_scores()
/// \returns [levels]
std::vector<Widths> solve_zscore(const Problem& problem, const std::vector<std::vector<double>>& scores);

}  // namespace elastify::plan
