#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/plan.h"
#include "model/profile.h"

namespace elastify::plan {

enum class Method : uint8_t { kUniform, kAnchors };

struct PlanOptions {
  Method method = Method::kUniform;
  std::vector<double> levels{0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0};  ///< shares of the decoder weights
  int64_t grid = 32;          ///< MLP widths are multiples of this: 32 for q8_0 and kin, 256 for K-quants
  double anchor_share = 0.2;  ///< of the layers that `anchors` keeps at full width
};

/// \throws UsageError listing the known methods
Method method_named(std::string_view name);
/// "0.9,0.7,0.5", "0.2:1.0:0.1" (low:high:step) or both mixed; in rising order. The full model (1) is always
/// among them. \throws UsageError
std::vector<double> parse_levels(std::string_view text);

/// Widths for every level, solved against the true ratio of decoder weights: half a grid step of the MLP
/// width off, at most, unless nesting forbids it. Levels are solved together, so that no width shrinks at a
/// higher level; whole KV groups follow the ratio as closely as that allows, and the MLP makes up the
/// difference. uniform: every layer equally wide (or as wide as it is, if that is less). anchors: the layers
/// whose removal hurts most stay full, the rest carries the budget; a level too low for that gives anchors
/// up, least important first. Notes say where, and where a true ratio is more than a percentage point off.
/// \param profile  needed by `anchors` (removal_loss); may be null for `uniform`
/// \throws Error  when a level cannot be met even at the narrowest widths (one KV group, one grid step),
/// naming the lowest ratio
///                that can; if the profile is another model's or lacks the removal loss
/// \throws UsageError  for levels outside (0, 1] and other options out of range
/// Source: ElastiLM, arXiv:2409.09071, section 3.2
ElasticPlan make_plan(const ModelSpec& spec, const Profile* profile, const PlanOptions& options);

}  // namespace elastify::plan
