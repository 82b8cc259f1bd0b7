#pragma once

#include <string>
#include <vector>

#include "plan/make_plan.h"

namespace elastify::plan {

/// How one half of a layer fares over the levels of a plan.
struct SpaceExplanation {
  int64_t n_units = 0;
  std::vector<double> kept;  ///< [levels] share of the units
  /// [levels] price of the last grid step that the level keeps (of the last KV group for attention): how much
  /// the cost would rise by the curves without it, per million weights. Empty without curves; 0 for a full
  /// space that costs nothing to narrow.
  std::vector<double> price;
};

struct LayerExplanation {
  SpaceExplanation attention, mlp;
  std::vector<double> kept;  ///< [levels] share of the layer's weights
};

/// How wide a plan keeps each layer, and the measurements that explain it.
struct Explanation {
  std::vector<double> levels;            ///< nominal, rising, without the full model
  std::vector<LayerExplanation> layers;  ///< [n_layers]
  std::vector<double> mean_kept;         ///< [levels] mean over the layers of the share kept
  /// [levels] layers whose kept share is at least 0.1 above the mean, the widest first.
  std::vector<std::vector<int64_t>> wide;
  /// Layers that act as anchors without having been asked for: they keep at least 95% of their units, in
  /// attention and MLP, at every level from 0.5 on. Empty if there is no such level.
  std::vector<int64_t> anchors;
  std::vector<double> removal_loss, block_influence;  ///< [n_layers]; empty if not measured
  std::string curves;                                 ///< source of the prices; empty without curves
};

/// \param profile  for removal loss and influence; may be null
/// \param curves   for prices; may be null
Explanation explain(const ModelSpec& spec, const ElasticPlan& plan, const Profile* profile,
                    const CostCurves* curves);

}  // namespace elastify::plan
