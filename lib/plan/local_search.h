#pragma once

#include "plan/methods.h"

namespace elastify::plan {

struct SearchResult {
  std::vector<Widths> widths;      ///< [levels]
  std::vector<double> start_loss;  ///< [levels] of the start that was chosen, as measured
  std::vector<double> loss;        ///< [levels] of `widths`; never above `start_loss`
  int64_t n_moves = 0;             ///< measured; at most what was asked for
  int64_t n_accepted = 0;
};

/// Improves plans on a measured loss. Of the starts, each nested in itself, every level takes one, so that
/// levels stay nested and the sum of the losses over the levels is the least there is: never more than that
/// of any start. Then, level by level in turns, moves within the budget: a space gives up its next steps (a
/// grid step of the MLP or a KV group), another takes as many as that pays for. Moves are proposed in the
/// order of what the curves make of them, those of spaces whose moves failed later; what measures better
/// stays. What is left over at the end is spent as fill_up() does. Widths stay within those of the level
/// above and not below those of the level below; dropped spaces stay dropped.
/// \param starts  [starts][levels]
/// \param curves  non-increasing
/// \param measure  called once per distinct widths
/// \param n_moves  most moves to measure, at all levels together; the starts, and what is spent at the end,
///                 are measured besides
SearchResult local_search(const Problem& problem, const CostCurves& curves,
                          const std::vector<std::vector<Widths>>& starts, const MeasureLoss& measure,
                          int64_t n_moves);

}  // namespace elastify::plan
