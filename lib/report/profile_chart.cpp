#include "report/profile_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/svg_chart.h"

namespace elastify::report {
namespace {

/// Cumulative shares, with as many points as the eye can tell apart.
ChartSeries curve_of(const Units& units) {
  constexpr int64_t kMostPoints = 64;
  ChartSeries curve{.name = {}, .x = {}, .y = {}, .dots = false};
  const int64_t n = std::min(units.n, kMostPoints);
  for (int64_t i = 0; i <= n; ++i) {
    // Denser where curves are steep: at the first, best units.
    const double even = static_cast<double>(i) / static_cast<double>(n);
    const double fraction = n < units.n ? even * even : even;
    curve.x.push_back(fraction);
    curve.y.push_back(units.top(fraction));
  }
  return curve;
}

Chart concentration_chart(const MetricLayers& measured) {
  Chart chart{.title = fmt::format("{}: {} ({} per layer)", measured.metric, measured.noun(),
                                   measured.range_of_units()),
              .x_label = "share of the layer's units, best first",
              .y_label = "share of its importance"};
  chart.legend_below = true;
  const size_t last = measured.layers.size() - 1;
  for (size_t layer = 0; layer <= last; ++layer) {
    ChartSeries curve = curve_of(measured.layers[layer]);
    curve.colour = ramp_colour(last > 0 ? static_cast<double>(layer) / static_cast<double>(last) : 0);
    if (layer == 0 || layer == last / 2 || layer == last) curve.name = fmt::format("layer {}", layer);
    chart.series.push_back(std::move(curve));
  }
  chart.series.push_back(
      {.name = "all alike", .x = {0, 1}, .y = {0, 1}, .colour = "#888888", .dash = 1, .dots = false});
  return chart;
}

/// Curves over the layers. The scale is logarithmic where the values span more than a factor of 20.
Chart layer_chart(const std::string& title, const std::string& y_label,
                  const std::vector<const LayerSeries*>& lines) {
  Chart chart{.title = title, .x_label = "layer", .y_label = y_label};
  chart.whole_x = true;
  double least = INFINITY, most = 0;
  for (const LayerSeries* line : lines) {
    ChartSeries series{.name = lines.size() > 1 ? line->curve : "", .x = {}, .y = line->values};
    for (size_t layer = 0; layer < line->values.size(); ++layer) {
      series.x.push_back(static_cast<double>(layer));
      least = std::min(least, line->values[layer]);
      most = std::max(most, line->values[layer]);
    }
    chart.series.push_back(std::move(series));
  }
  chart.log_y = least > 0 && most > 20 * least;
  return chart;
}

}  // namespace

std::string profile_svg(const ProfileSummary& profile, const std::string& name) {
  std::vector<std::vector<Chart>> rows;
  std::vector<const LayerSeries*> losses, influences;
  for (const LayerSeries& series : profile.layers)
    (series.name == std::string_view("removal_loss") ? losses : influences).push_back(&series);
  if (!profile.layers.empty()) rows.emplace_back();
  if (!losses.empty())
    rows[0].push_back(layer_chart("Loss when a layer is left out", "rise, nats per token", losses));
  if (!influences.empty())
    rows[0].push_back(
        layer_chart("Influence on the residual stream", "mean of 1 - cos(before, after)", influences));
  for (const MetricLayers& measured : profile.importance) {
    if (rows.empty() || measured.kind == "attn" ||
        rows.back().front().title.rfind(measured.metric + ":", 0) != 0)
      rows.emplace_back();
    rows.back().push_back(concentration_chart(measured));
  }
  constexpr size_t kLongest = 60;
  const std::string corpus = profile.corpus.size() > kLongest
                                 ? "..." + profile.corpus.substr(profile.corpus.size() - kLongest)
                                 : profile.corpus;
  return to_svg(fmt::format("{}: {} tokens of {}", name, profile.tokens, corpus), rows);
}

}  // namespace elastify::report
