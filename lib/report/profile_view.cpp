#include "report/profile_view.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "base/file.h"
#include "report/profile_chart.h"
#include "report/profile_summary.h"

namespace elastify::report {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const ProfileSummary& profile, const fs::path& path) {
  ordered_json json{{"path", path.string()},        {"spec_hash", profile.spec_hash},
                    {"corpus", profile.corpus},     {"corpus_digest", profile.corpus_digest},
                    {"tokens", profile.tokens},     {"seq_len", profile.seq_len},
                    {"seed", profile.seed},         {"base_loss", profile.base_loss},
                    {"n_layers", profile.n_layers}, {"metrics", profile.metrics}};
  for (const LayerSeries& series : profile.layers) json[series.name] = series.values;
  json["concentration"] = ordered_json::array();
  for (const MetricLayers& measured : profile.importance) {
    ordered_json entry{
        {"metric", measured.metric}, {"space", measured.kind}, {"n_units", ordered_json::array()}};
    for (const Units& units : measured.layers) entry["n_units"].push_back(units.n);
    for (const Figure& figure : figures()) {
      ordered_json by_layer = ordered_json::array();
      for (const Units& units : measured.layers) by_layer.push_back(figure.of(units));
      entry[figure.key] = {{"mean", spread_of(measured, figure).mean}, {"layers", std::move(by_layer)}};
    }
    json["concentration"].push_back(std::move(entry));
  }
  json["input_means"] = profile.inputs;
  json["second_moments"] = {{"spaces", profile.n_moments}, {"bytes", profile.moments_bytes}};
  return json;
}

/// The bars beside a column of values: linear, or over three decades where one layer would dwarf the others.
struct Bars {
  double most = 0;
  bool logarithmic = false;

  explicit Bars(std::vector<double> values) {
    if (values.empty()) return;
    std::sort(values.begin(), values.end());
    most = values.back();
    logarithmic = most > 8 * values[values.size() / 2];
  }
  std::string of(double value) const {
    constexpr double kLength = 20, kDecades = 3;
    if (!(value > 0) || !(most > 0)) return {};
    const double filled = logarithmic ? 1 + std::log10(value / most) / kDecades : value / most;
    return std::string(static_cast<size_t>(std::max(kLength * filled, 0.0) + 0.5), '#');
  }
};

/// A line per layer: its sensitivity, and how uneven its units are by the main metric.
std::string layer_table(const ProfileSummary& profile) {
  std::vector<const MetricLayers*> shown;
  for (const MetricLayers& measured : profile.importance)
    if (measured.metric == profile.main_metric()) shown.push_back(&measured);
  if (profile.layers.empty() && shown.empty()) return {};
  std::string text = "\nlayer";
  for (const LayerSeries& series : profile.layers) text += fmt::format(" {:>9}", series.column);
  for (const MetricLayers* measured : shown) text += fmt::format(" {:>9}", measured->kind + " 50%");
  text += "\n";
  const Bars bars(profile.layers.empty() ? std::vector<double>{} : profile.layers.front().values);
  for (size_t layer = 0; layer < static_cast<size_t>(profile.n_layers); ++layer) {
    text += fmt::format("{:>5}", layer);
    for (const LayerSeries& series : profile.layers) text += fmt::format(" {:>9.4f}", series.values[layer]);
    for (const MetricLayers* measured : shown)
      text += fmt::format(" {:>8.0f}%", 100 * measured->layers[layer].top(0.5));
    const std::string bar = profile.layers.empty() ? "" : bars.of(profile.layers.front().values[layer]);
    text += bar.empty() ? "\n" : "  " + bar + "\n";
  }
  for (const LayerSeries& series : profile.layers)
    text += fmt::format("  {}: {}\n", series.column, series.explained);
  if (!shown.empty())
    text +=
        fmt::format("  {} 50%: share of the layer's {} importance that the better half of its units holds\n",
                    shown.size() > 1 ? "attn 50%, mlp" : shown[0]->kind, profile.main_metric());
  if (!profile.layers.empty())
    text += fmt::format("  bars: {}{}\n", profile.layers.front().column,
                        bars.logarithmic ? ", logarithmic over three decades" : "");
  return text;
}

std::string concentration_table(const ProfileSummary& profile) {
  if (profile.importance.empty()) return {};
  std::string text = "\nshare of a layer's importance that its best units hold, mean of the layers\n";
  const auto row = [&](std::string_view metric, std::string_view units, auto&&... figures) {
    text += fmt::format("{:<15} {:<16} {:>8} {:>8} {:>12}   {:<14} {}\n", metric, units, figures...);
  };
  const auto percent = [](double share) { return fmt::format("{:.0f}%", 100 * share); };
  row("metric", "units per layer", "best 20%", "best 50%", "90% is held by", "most even", "least even");
  int64_t not_finite = 0;
  for (const MetricLayers& measured : profile.importance) {
    const Spread half = spread_of(measured, figures()[1]);
    row(measured.metric, fmt::format("{} {}", measured.range_of_units(), measured.noun()),
        percent(spread_of(measured, figures()[0]).mean), percent(half.mean),
        percent(spread_of(measured, figures()[2]).mean),
        fmt::format("layer {} ({})", half.lowest, percent(half.low)),
        fmt::format("layer {} ({})", half.highest, percent(half.high)));
    for (const Units& units : measured.layers) not_finite += units.not_finite;
  }
  row("all alike", "", percent(figures()[0].alike), percent(figures()[1].alike), percent(figures()[2].alike),
      "", "");
  text.erase(text.find_last_not_of(" \n") + 1);
  text +=
      "\n  the less alike the units are, the more a layer can be narrowed; most and least even: by best "
      "50%\n";
  if (not_finite > 0) text += fmt::format("  {} units have an importance that is not a number\n", not_finite);
  return text;
}

std::string to_text(const ProfileSummary& profile, const fs::path& path) {
  std::string text =
      fmt::format("{}: {} layers, {} tokens of {}, in sequences of {}, seed {}\n", path.string(),
                  profile.n_layers, profile.tokens,
                  profile.corpus.empty() ? "an unnamed text" : profile.corpus, profile.seq_len, profile.seed);
  text += fmt::format("  loss of the whole model {:.4f} nats per token; metrics {}\n", profile.base_loss,
                      profile.metrics.empty() ? "none" : fmt::format("{}", fmt::join(profile.metrics, ", ")));
  text += fmt::format("  input means {}; second moments {}\n", profile.inputs ? "yes" : "no",
                      profile.n_moments > 0 ? fmt::format("of {} spaces, {:.1f} MB", profile.n_moments,
                                                          static_cast<double>(profile.moments_bytes) / 1e6)
                                            : "no");
  return text + layer_table(profile) + concentration_table(profile);
}

}  // namespace

Report view_profile(const fs::path& path, const fs::path& plot) {
  const ProfileSummary profile = read_profile_summary(path);
  Report report{.json = to_json(profile, path), .text = to_text(profile, path)};
  if (!plot.empty()) {
    write_text(plot, profile_svg(profile, path.filename().string()));
    report.json["plot"] = plot.string();
    report.text += fmt::format("\nplot -> {}\n", plot.string());
  }
  return report;
}

}  // namespace elastify::report
