#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "model/plan.h"
#include "model/profile.h"
#include "plan/budget.h"
#include "plan/cost_curves.h"

namespace elastify::plan {

enum class Method : uint8_t {
  kUniform,  ///< every layer equally wide, or full if it is narrower than that
  /// The layers whose removal hurts most stay full, and the other layers carry the budget. A level that is
  /// too low for that gives up anchors, the least important first.
  /// Source: ElastiLM, arXiv:2409.09071, section 3.2
  kAnchors,
  /// Units stay whose score, standardised within their space, is above a threshold. Each level has one
  /// threshold for all spaces.
  /// Source: FLAP, arXiv:2312.11983, section 3.2
  kZscore,
  /// Whole layers are dropped, the least influential first, by the profile's block_influence: 1 minus the
  /// cosine between a layer's input and output. Levels are met to within half a layer.
  /// Source: ShortGPT, arXiv:2403.03853
  kShortGpt,
  kDp,  ///< widths of the least total cost by the curves: a knapsack, by dynamic programming
  /// Starts from `dp`, `dp` with attention held dearer, `uniform` and `anchors` (chosen by the curves, and
  /// also by the profile's removal_loss if it has one). A measured loss chooses among them, and then the
  /// widths are improved step by step.
  kDpKl,
};

struct PlanOptions {
  Method method = Method::kUniform;
  std::vector<double> levels{0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0};  ///< shares of the budget
  int64_t grid = 32;  ///< MLP widths are multiples of this: 32 for q8_0 and similar types, 256 for K-quants
  double anchor_share = 0.2;  ///< share of the layers that `anchors` keeps at full width
  Budget budget;              ///< the quantity of which levels are shares
  double min_width = 0;       ///< share of every space that always stays, unless the space is dropped
  /// Whether `dp` and `dp+kl` may drop the attention of a layer, or the whole layer. Stock llama.cpp needs
  /// the attention of the first layer and the MLP of the last one, and an MLP may go only together with the
  /// attention.
  bool depth = false;
  Metric metric = Metric::kTaylor;  ///< scores that `zscore` uses, and `dp` without curves
  int64_t search_steps = 100;       ///< moves that `dp+kl` measures, at all levels together
  /// Tokens per sequence of the text that `dp` and `dp+kl` measure on; 0: as in the calibration text. Shorter
  /// sequences come from more places of the text.
  int64_t search_seq = 0;
};

/// \throws UsageError  for an unknown name; the message lists the known methods
Method method_named(std::string_view name);
std::string_view name_of(Method method);
/// Whether plans of this method depend on the profile's removal_loss.
bool goes_by_removal_loss(Method method);
/// Parses "0.9,0.7,0.5", "0.2:1.0:0.1" (low:high:step), or a mix of both. Returns the levels in rising order,
/// always with the full model (1) among them.
/// \throws UsageError
std::vector<double> parse_levels(std::string_view text);

/// Loss of the sub-model with these widths, for example its divergence from the full model on calibration
/// data. Lower is better; a loss that is not finite counts as the worst.
using MeasureLoss = std::function<double(const Widths&)>;

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

}  // namespace elastify::plan
