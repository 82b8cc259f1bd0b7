#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "model/profile.h"
#include "options/forward.h"
#include "options/named.h"
#include "plan/budget.h"

namespace elastify::plan {

/// How widths are chosen.
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

/// States what a method needs: the one table for the planner, the stages and the command line.
struct MethodFacts {
  bool needs_profile = false;    ///< scores, removal losses or influences of a profile
  bool needs_removal = false;    ///< its plans differ with the profile's removal_loss
  bool needs_moments = false;    ///< second moments, or the influences that are measured along with them
  bool measures_losses = false;  ///< losses on text, where there are second moments
  bool drops_layers = false;     ///< `depth` may be asked of it
};
MethodFacts facts_of(Method method);

std::span<const options::Named<Method>> names_of(Method);
std::string_view name_of(Method method);
/// \throws UsageError listing the known methods
Method method_named(std::string_view name);

struct PlanOptions {
  Method method = Method::kUniform;
  std::vector<double> levels{0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0};  ///< shares of the budget
  int64_t grid = 32;          ///< MLP widths are multiples of this: 32 for q8_0 and kin, 256 for K-quants
  double anchor_share = 0.2;  ///< of the layers that `anchors` keeps at full width
  Budget budget;              ///< the quantity of which levels are shares
  double min_width = 0;       ///< share of every space that always stays, unless the space is dropped
  /// Whether `dp` and `dp+kl` may drop the attention of a layer, or the whole layer. Stock llama.cpp needs
  /// the attention of the first layer and the MLP of the last one, and an MLP may go only together with the
  /// attention.
  bool depth = false;
  Metric metric = Metric::kTaylor;  ///< scores that `zscore` uses, and `dp` without curves
  int64_t search_tokens = 1024;     ///< calibration tokens that `dp` and `dp+kl` measure losses on
  /// Tokens per sequence of that text; 0: as many as the calibration text's. Shorter sequences come from more
  /// places.
  int64_t search_seq = 0;
  int64_t search_steps = 100;  ///< moves that `dp+kl` measures, at all levels together
};
/// Declares all fields but `metric`, which is that of the order.
void declare(options::Options& options, PlanOptions& fields);

}  // namespace elastify::plan
