#include "report/plan_view.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "report/svg_chart.h"

namespace elastify::report {
namespace {

/// "2" or, where layers differ, "1-3".
std::string range_of(const ModelSpec& spec, const Widths& widths, SpaceKind kind) {
  int64_t low = INT64_MAX, high = 0;
  for (size_t i = 0; i < widths.size(); ++i) {
    if (spec.spaces[i].kind != kind) continue;
    low = std::min(low, widths[i]);
    high = std::max(high, widths[i]);
  }
  return low == high ? fmt::format("{}", low) : fmt::format("{}-{}", low, high);
}

using nlohmann::ordered_json;

std::string percent(double share) {
  return fmt::format("{:.0f}%", 100 * share);
}

/// A table of the shares that one half of each layer keeps, with a column per level.
std::string kept_table(const PlanExplanation& explained, const std::string& title,
                       SpaceExplanation LayerExplanation::*half) {
  std::string text = fmt::format("\n{}\nlayer {:>6}", title, "of");
  for (const double level : explained.levels) text += fmt::format(" {:>6.3g}", level);
  text += "\n";
  for (size_t layer = 0; layer < explained.layers.size(); ++layer) {
    const SpaceExplanation& space = explained.layers[layer].*half;
    text += fmt::format("{:>5} {:>6}", layer, space.n_units);
    for (const double kept : space.kept)
      text += half == &LayerExplanation::attention
                  ? fmt::format(" {:>6.0f}", kept * static_cast<double>(space.n_units))
                  : fmt::format(" {:>6}", percent(kept));
    text += "\n";
  }
  return text;
}

/// "layer 3 keeps 91% (price of attention 0.2, of MLP 0.31, removal 0.05, influence 0.1)".
std::string why(const PlanExplanation& explained, size_t layer, size_t level) {
  const LayerExplanation& of = explained.layers[layer];
  std::vector<std::string> reasons;
  if (!of.attention.price.empty())
    reasons.push_back(fmt::format("price of attention {:.3g}, of MLP {:.3g}", of.attention.price[level],
                                  of.mlp.price[level]));
  if (!explained.removal_loss.empty())
    reasons.push_back(fmt::format("removal {:.3g}", explained.removal_loss[layer]));
  if (!explained.block_influence.empty())
    reasons.push_back(fmt::format("influence {:.3g}", explained.block_influence[layer]));
  return fmt::format("layer {} keeps {}{}", layer, percent(of.kept[level]),
                     reasons.empty() ? "" : fmt::format(" ({})", fmt::join(reasons, ", ")));
}

ordered_json explanation_json(const PlanExplanation& explained) {
  ordered_json layers = ordered_json::array(), wide = ordered_json::array();
  for (size_t layer = 0; layer < explained.layers.size(); ++layer) {
    const LayerExplanation& of = explained.layers[layer];
    ordered_json entry{{"layer", layer}, {"kept", of.kept}};
    for (const auto& [name, space] : {std::pair{"attention", &of.attention}, {"mlp", &of.mlp}}) {
      entry[name] = {{"n_units", space->n_units}, {"kept", space->kept}};
      if (!space->price.empty()) entry[name]["price"] = space->price;
    }
    if (!explained.removal_loss.empty()) entry["removal_loss"] = explained.removal_loss[layer];
    if (!explained.block_influence.empty()) entry["block_influence"] = explained.block_influence[layer];
    layers.push_back(std::move(entry));
  }
  for (size_t level = 0; level < explained.levels.size(); ++level)
    wide.push_back({{"level", explained.levels[level]}, {"layers", explained.wide[level]}});
  ordered_json json{{"levels", explained.levels},
                    {"mean_kept", explained.mean_kept},
                    {"anchors", explained.anchors},
                    {"wide", std::move(wide)},
                    {"layers", std::move(layers)}};
  if (!explained.curves.empty()) json["curves"] = explained.curves;
  return json;
}

std::string explanation_text(const PlanExplanation& explained) {
  std::string text =
      kept_table(explained, "KV groups kept, by layer and level", &LayerExplanation::attention);
  text += kept_table(explained, "MLP width kept, by layer and level", &LayerExplanation::mlp);
  text += "\nlayers that stayed wide: those that keep a tenth of their weights more than the mean\n";
  for (size_t level = 0; level < explained.levels.size(); ++level) {
    text += fmt::format("level {:g}: {} on average; {}\n", explained.levels[level],
                        percent(explained.mean_kept[level]),
                        explained.wide[level].empty() ? "no layer stands out" : "wide are");
    for (const int64_t layer : explained.wide[level])
      text += "  " + why(explained, static_cast<size_t>(layer), level) + "\n";
  }
  text += fmt::format(
      "anchors that fall out (95% or more at every level from 0.5 on): {}\n",
      explained.anchors.empty() ? "none" : fmt::format("layers {}", fmt::join(explained.anchors, ", ")));
  if (!explained.curves.empty())
    text +=
        fmt::format("  price: what the last step kept saves, per million weights; by {}\n", explained.curves);
  if (!explained.removal_loss.empty())
    text += "  removal: rise of the loss without the layer, nats per token\n";
  if (!explained.block_influence.empty())
    text += "  influence: mean over tokens of 1 - cos(before, after) the layer\n";
  return text;
}

HeatMap heat_map(const PlanExplanation& explained, const std::string& title,
                 SpaceExplanation LayerExplanation::*half) {
  HeatMap map{.title = title, .x_label = "layer", .y_label = "level"};
  for (size_t layer = 0; layer < explained.layers.size(); ++layer)
    map.columns.push_back(fmt::format("{}", layer));
  for (size_t level = explained.levels.size(); level-- > 0;) {
    map.rows.push_back(fmt::format("{:g}", explained.levels[level]));
    auto& row = map.values.emplace_back();
    for (const LayerExplanation& layer : explained.layers) row.push_back((layer.*half).kept[level]);
  }
  return map;
}

}  // namespace

Report view_plan(const ElasticPlan& plan, const ModelSpec& spec) {
  Report report;
  report.json = {{"method", plan.method},
                 {"budget", plan.budget},
                 {"anchors", plan.anchors},
                 {"notes", plan.notes},
                 {"levels", nlohmann::ordered_json::array()}};
  const bool of_decoder = plan.budget == "decoder";
  const auto share = [&](const std::string& text) { return of_decoder ? "" : fmt::format(" {:>10}", text); };
  report.text = fmt::format("{:>6}{} {:>10} {:>10} {:>12} {:>10} {:>12}\n", "level", share("of budget"),
                            "true ratio", "all ratio", "parameters", "KV groups", "MLP width");
  for (const Level& level : plan.levels) {
    report.json["levels"].push_back({{"level", level.nominal},
                                     {"true_ratio", level.decoder_ratio},
                                     {"total_ratio", level.total_ratio},
                                     {"budget_ratio", level.budget_ratio},
                                     {"n_params", n_params(spec, level.widths)}});
    report.text +=
        fmt::format("{:>6.3g}{} {:>10.4f} {:>10.4f} {:>12} {:>10} {:>12}\n", level.nominal,
                    share(fmt::format("{:.4f}", level.budget_ratio)), level.decoder_ratio, level.total_ratio,
                    n_params(spec, level.widths), range_of(spec, level.widths, SpaceKind::kAttention),
                    range_of(spec, level.widths, SpaceKind::kMlp));
  }
  if (!of_decoder) report.text += fmt::format("levels are shares of the budget {}\n", plan.budget);
  if (!plan.anchors.empty())
    report.text += fmt::format("anchor layers, most important first: {}\n", fmt::join(plan.anchors, ", "));
  for (const auto& note : plan.notes) report.text += "note: " + note + "\n";
  return report;
}

void add_explanation(Report& report, const PlanExplanation& explained) {
  report.text += explanation_text(explained);
  report.json["explain"] = explanation_json(explained);
}

std::string explanation_svg(const PlanExplanation& explained, const std::string& title) {
  return heat_maps_to_svg(
      title, {heat_map(explained, "MLP: share of the width kept", &LayerExplanation::mlp),
              heat_map(explained, "Attention: share of the KV groups kept", &LayerExplanation::attention)});
}

}  // namespace elastify::report
