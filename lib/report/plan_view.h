#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/plan.h"
#include "report/report.h"

namespace elastify::report {

/// One half of a layer over the levels of a plan.
struct SpaceExplanation {
  int64_t n_units = 0;
  std::vector<double> kept;  ///< [levels] share of the units
  /// [levels] rise of the cost, by the curves, if the level gave up its last step of the grid (one KV group
  /// for attention), per million weights. 0 for a full space that costs nothing to narrow; empty without
  /// curves.
  std::vector<double> price;
};

struct LayerExplanation {
  SpaceExplanation attention, mlp;
  std::vector<double> kept;  ///< [levels] share of the layer's weights
};

/// The effect of a plan on each layer, and the reasons that are known. plan::explain() makes it.
struct PlanExplanation {
  std::vector<double> levels;            ///< nominal, rising, without the full model
  std::vector<LayerExplanation> layers;  ///< [n_layers]
  std::vector<double> mean_kept;         ///< [levels] mean over the layers of the share kept
  /// [levels] layers that keep at least a tenth of their weights more than the mean, the widest first.
  std::vector<std::vector<int64_t>> wide;
  /// Layers that keep at least 95% of their units, attention and MLP, at every level from 0.5 on: anchors
  /// that nobody asked for. Empty where there is no such level.
  std::vector<int64_t> anchors;
  std::vector<double> removal_loss, block_influence;  ///< [n_layers]; empty if not measured
  std::string curves;                                 ///< where prices come from; empty without
};

/// The levels with nominal and true ratios and widths, and the plan's notes.
Report view_plan(const ElasticPlan& plan, const ModelSpec& spec);

/// Adds to a report which layers stayed wide, and why; in JSON as `explain`.
void add_explanation(Report& report, const PlanExplanation& explained);
/// An SVG file with heat maps of the shares kept, levels by layers: attention and MLP.
std::string explanation_svg(const PlanExplanation& explained, const std::string& title);

}  // namespace elastify::report
