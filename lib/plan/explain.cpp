#include "plan/explain.h"

#include <algorithm>

namespace elastify::plan {
namespace {

using report::LayerExplanation;
using report::PlanExplanation;
using report::SpaceExplanation;

constexpr double kAnchorShare = 0.95, kAnchorsFrom = 0.5;
constexpr double kWide = 0.1;
constexpr double kPerMillion = 1e6;

SpaceExplanation explain_space(const ModelSpec& spec, const ElasticPlan& plan, size_t space,
                               const CostCurves* curves) {
  const AxisSpace& of = spec.spaces[space];
  const int64_t step = of.kind == SpaceKind::kMlp ? plan.grid : 1;
  SpaceExplanation explained;
  explained.n_units = of.n_units;
  for (size_t level = 0; level + 1 < plan.levels.size(); ++level) {
    const int64_t width = plan.levels[level].widths[space];
    explained.kept.push_back(static_cast<double>(width) / static_cast<double>(of.n_units));
    if (curves == nullptr) continue;
    const std::vector<double>& cost = curves->cost[space];
    const int64_t narrower = std::max<int64_t>(0, (width - 1) / step * step);
    const auto weights = static_cast<double>((width - narrower) * params_per_unit(spec, space));
    explained.price.push_back(
        weights > 0
            ? kPerMillion * (cost[static_cast<size_t>(narrower)] - cost[static_cast<size_t>(width)]) / weights
            : 0);
  }
  return explained;
}

bool is_anchor(const PlanExplanation& explained, const LayerExplanation& layer) {
  bool any = false;
  for (size_t level = 0; level < explained.levels.size(); ++level) {
    if (explained.levels[level] < kAnchorsFrom) continue;
    any = true;
    if (layer.attention.kept[level] < kAnchorShare || layer.mlp.kept[level] < kAnchorShare) return false;
  }
  return any;
}

}  // namespace

PlanExplanation explain(const ModelSpec& spec, const ElasticPlan& plan, const Profile* profile,
                        const CostCurves* curves) {
  PlanExplanation explained;
  for (size_t level = 0; level + 1 < plan.levels.size(); ++level)
    explained.levels.push_back(plan.levels[level].nominal);
  explained.mean_kept.assign(explained.levels.size(), 0);
  CostCurves falling;
  if (curves != nullptr) {
    falling = non_increasing(spec, *curves);
    curves = &falling;
    explained.curves = falling.source;
  }
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
    const size_t attention = spec.attention_space(layer), mlp = spec.mlp_space(layer);
    LayerExplanation& of = explained.layers.emplace_back();
    of.attention = explain_space(spec, plan, attention, curves);
    of.mlp = explain_space(spec, plan, mlp, curves);
    const auto group = static_cast<double>(params_per_unit(spec, attention) * of.attention.n_units);
    const auto neurons = static_cast<double>(params_per_unit(spec, mlp) * of.mlp.n_units);
    for (size_t level = 0; level < explained.levels.size(); ++level) {
      of.kept.push_back((of.attention.kept[level] * group + of.mlp.kept[level] * neurons) /
                        (group + neurons));
      explained.mean_kept[level] += of.kept.back() / static_cast<double>(spec.n_layers);
    }
    if (is_anchor(explained, of)) explained.anchors.push_back(layer);
  }
  for (size_t level = 0; level < explained.levels.size(); ++level) {
    const auto kept = [&](int64_t layer) { return explained.layers[static_cast<size_t>(layer)].kept[level]; };
    auto& wide = explained.wide.emplace_back();
    for (int64_t layer = 0; layer < spec.n_layers; ++layer)
      if (kept(layer) >= explained.mean_kept[level] + kWide) wide.push_back(layer);
    std::stable_sort(wide.begin(), wide.end(), [&](int64_t a, int64_t b) { return kept(a) > kept(b); });
  }
  if (profile != nullptr) {
    explained.removal_loss = profile->removal_loss;
    explained.block_influence = profile->block_influence;
  }
  return explained;
}

}  // namespace elastify::plan
