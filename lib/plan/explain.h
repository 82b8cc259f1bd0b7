#pragma once

#include <string>
#include <vector>

#include "plan/make_plan.h"

namespace elastify::plan {

/// One half of a layer over the levels of a plan.
struct SpaceExplanation {
  int64_t n_units = 0;
  std::vector<double> kept;  ///< [levels] share of the units
  /// [levels] what the last step of the grid that a level keeps (one KV group for attention) saves, by the
  /// curves: rise of the cost without it per million weights; empty without curves. A full space that costs
  /// nothing to narrow has 0.
  std::vector<double> price;
};

struct LayerExplanation {
  SpaceExplanation attention, mlp;
  std::vector<double> kept;  ///< [levels] share of the layer's weights
};

/// What a plan does to each layer, and what speaks for that.
struct Explanation {
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

/// \param profile  for removal loss and influence; may be null
/// \param curves   for prices; may be null
Explanation explain(const ModelSpec& spec, const ElasticPlan& plan, const Profile* profile,
                    const CostCurves* curves);

}  // namespace elastify::plan
