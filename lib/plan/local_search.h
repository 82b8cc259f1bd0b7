#pragma once

#include "plan/methods.h"

namespace elastify::plan {

struct SearchResult {
  std::vector<Widths> widths;      ///< [levels]
  std::vector<double> start_loss;  ///< [levels] measured loss of the chosen start
  std::vector<double> loss;        ///< [levels] measured loss of `widths`; never above `start_loss`
  int64_t n_moves = 0;             ///< number of measured moves; at most as many as asked for
  int64_t n_accepted = 0;
};

/// Improves plans by a measured loss.
///
/// First, every level takes one of the starts, so that the levels are nested and the sum of their losses is
/// least. Each start is nested in itself, so the sum is never above that of any start.
///
/// Then the levels take turns with moves within the budget. In a move, one space gives up its next steps
/// (grid steps of the MLP or KV groups), and another takes as many as that pays for. Moves are tried in the
/// order of the costs that the curves predict; spaces whose moves failed come later. A move that measures
/// better is kept.
///
/// Last, fill_up() spends what is left over. Widths stay between those of the level below and of the level
/// above. Dropped spaces stay dropped.
/// \param starts  [starts][levels]
/// \param curves  non-increasing
/// \param measure  called once per distinct widths
/// \param n_moves  most moves to measure, at all levels together; the starts and the final widths are
///                 measured in addition
SearchResult local_search(const Problem& problem, const CostCurves& curves,
                          const std::vector<std::vector<Widths>>& starts, const MeasureLoss& measure,
                          int64_t n_moves);

}  // namespace elastify::plan
