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
  kUniform,  ///< every layer equally wide, or as wide as it is if that is less
  /// The layers whose removal hurts most stay full, the rest carries the budget; a level too low for that
  /// gives anchors up, least important first. Source: ElastiLM, arXiv:2409.09071, section 3.2
  kAnchors,
  /// Units stay whose score, standardised within their space, is above one threshold per level. Source: FLAP,
  /// arXiv:2312.11983, section 3.2
  kZscore,
  /// Whole layers go, the one that turns its input least first: by the profile's block_influence, one less
  /// the cosine between a layer's input and output. Levels are met to half a layer. Source: ShortGPT,
  /// arXiv:2403.03853
  kShortGpt,
  kDp,  ///< the widths of the least total cost by the curves: a knapsack, by dynamic programming
  /// The best by a measured loss of `dp`, `dp` with attention held dearer, `uniform` and `anchors` (by the
  /// curves, and by the profile's removal_loss where there is one), improved step by step
  kDpKl,
};

struct PlanOptions {
  Method method = Method::kUniform;
  std::vector<double> levels{0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0};  ///< shares of the budget
  int64_t grid = 32;          ///< MLP widths are multiples of this: 32 for q8_0 and kin, 256 for K-quants
  double anchor_share = 0.2;  ///< of the layers that `anchors` keeps at full width
  Budget budget;              ///< what levels are shares of
  double min_width = 0;       ///< share of every space that always stays (of those that are not dropped)
  /// Whether `dp` and `dp+kl` may drop the attention of a layer, or all of it. As stock llama.cpp has it, the
  /// first layer keeps its attention, the last its MLP, and an MLP goes only together with the attention.
  bool depth = false;
  Metric metric = Metric::kTaylor;  ///< whose scores `zscore` goes by, and `dp` unless there are curves
  int64_t search_steps = 100;       ///< moves that `dp+kl` measures, at all levels together
  /// Tokens per sequence of the text that `dp` and `dp+kl` measure on; 0: as many as the calibration text's.
  /// Of as much text, more and shorter sequences are from more places.
  int64_t search_seq = 0;
};

/// \throws UsageError listing the known methods
Method method_named(std::string_view name);
std::string_view name_of(Method method);
/// Whether plans of this method differ with the profile's removal_loss.
bool goes_by_removal_loss(Method method);
/// "0.9,0.7,0.5", "0.2:1.0:0.1" (low:high:step) or both mixed; in rising order. The full model (1) is always
/// among them.
/// \throws UsageError
std::vector<double> parse_levels(std::string_view text);

/// Loss of the sub-model with these widths, the lower the better: the divergence from the full model on
/// calibration text, for one. What is not finite counts as worst.
using MeasureLoss = std::function<double(const Widths&)>;

/// Widths for every level, solved against the true share of the budget: half a grid step of the MLP width
/// off, at most, unless nesting forbids it; no width shrinks at a higher level. A grid step is one of all
/// layers that carry the budget for `uniform` and `anchors`, of which whole KV groups follow the ratio as
/// closely as that allows and the MLP makes up the difference; of a single layer for the others, whose KV
/// groups go where the method finds them cheap. Notes say where levels give anchors up, and where a true
/// share is off by more than a percentage point or, of those whose layers have widths of their own, a grid
/// step.
/// \param profile  needed by `anchors` (removal_loss), `shortgpt` (block_influence), `zscore` and, without
///   curves, `dp`; else may be null
/// \param curves  what `dp` and `dp+kl` go by; null: curves_from_scores() of the profile
/// \param measure  needed by `dp+kl`
/// \throws Error  when a level cannot be met even at the narrowest widths (one KV group, one grid step, or
///   what `min_width` and `depth` make of them), naming the lowest ratio that can; if the profile is another
///   model's or lacks what the method needs
/// \throws UsageError  for levels outside (0, 1] and other options out of range
ElasticPlan make_plan(const ModelSpec& spec, const Profile* profile, const PlanOptions& options,
                      const CostCurves* curves = nullptr, const MeasureLoss& measure = nullptr);

}  // namespace elastify::plan
