#include "cli/inspect_profile.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>

#include "base/error.h"
#include "base/svg_chart.h"
#include "io/hdf5.h"
#include "model/profile.h"

namespace elastify::cli {
namespace {

using nlohmann::ordered_json;

/// Importance of the units of one space. Negative importance counts as none.
struct Units {
  int64_t n = 0;
  int64_t not_finite = 0;
  std::vector<double> held;  ///< [n + 1]: share of all importance that the i most important units hold

  /// Share held by the most important fraction of the units.
  double top(double fraction) const {
    const double at = fraction * static_cast<double>(n);
    const auto below = std::min(static_cast<size_t>(at), static_cast<size_t>(n - 1));
    return held[below] + (at - static_cast<double>(below)) * (held[below + 1] - held[below]);
  }
  /// The smallest fraction of the units that holds this share.
  double needed_for(double share) const {
    const auto above = std::lower_bound(held.begin() + 1, held.end() - 1, share);
    const double low = *(above - 1), step = *above - low;
    const double whole = static_cast<double>(above - held.begin() - 1);
    return (whole + (step > 0 ? std::clamp((share - low) / step, 0.0, 1.0) : 0)) / static_cast<double>(n);
  }
};

Units units_of(std::vector<float> importance) {
  Units units;
  units.n = static_cast<int64_t>(importance.size());
  double sum = 0;
  for (float& value : importance) {
    if (!std::isfinite(value)) ++units.not_finite;
    if (!std::isfinite(value) || value < 0) value = 0;
    sum += static_cast<double>(value);
  }
  std::sort(importance.begin(), importance.end(), std::greater<>());
  units.held.push_back(0);
  for (size_t i = 0; i < importance.size(); ++i)
    units.held.push_back(sum > 0 ? units.held.back() + static_cast<double>(importance[i]) / sum
                                 : static_cast<double>(i + 1) / static_cast<double>(units.n));
  return units;
}

/// One metric on the spaces of one kind: [n_layers].
struct MetricLayers {
  std::string metric, kind;  ///< "attn" or "mlp"
  std::vector<Units> layers;

  const char* noun() const { return kind == "attn" ? "KV groups" : "neurons"; }
};

struct LayerSeries {
  const char* name;    ///< of the dataset and the key in JSON
  const char* column;  ///< heading
  const char* curve;   ///< in the legend of the chart
  const char* explained;
  std::vector<double> values;
};

const LayerSeries kLayerSeries[] = {
    {"removal_loss", "removal", "removal", "rise of the loss without the layer, nats per token", {}},
    {"block_influence",
     "influence",
     "whole layer",
     "mean over tokens of 1 - cos(before, after) the layer",
     {}},
    {"attention_influence", "attn", "attention", "the same of its attention half", {}},
    {"mlp_influence", "mlp", "MLP", "the same of its MLP half", {}}};

/// A profile as its file has it.
struct ProfileFile {
  std::string spec_hash, corpus, corpus_digest;
  int64_t tokens = 0, seq_len = 0, seed = 0;
  double base_loss = 0;
  std::vector<std::string> metrics;
  std::vector<MetricLayers> importance;  ///< attention, then MLP, of every metric
  std::vector<LayerSeries> layers;       ///< those that were measured
  int64_t n_layers = 0;
  bool inputs = false;
  int64_t n_moments = 0;  ///< spaces with second moments
  uint64_t moments_bytes = 0;

  /// Taylor where it was measured: what orders units unless told otherwise.
  std::string main_metric() const {
    const std::string usual(name_of(Metric::kTaylor));
    const bool measured = std::find(metrics.begin(), metrics.end(), usual) != metrics.end();
    return measured || metrics.empty() ? usual : metrics.front();
  }
};

/// Layer and kind of a space called layers.3.mlp.
std::pair<int64_t, std::string> parse_space(const std::string& name) {
  constexpr std::string_view kPrefix = "layers.";
  int64_t layer = -1;
  const size_t dot = name.rfind('.');
  if (name.starts_with(kPrefix) && dot > kPrefix.size()) {
    const auto [end, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + dot, layer);
    const std::string kind = name.substr(dot + 1);
    if (error == std::errc() && end == name.data() + dot && layer >= 0 && (kind == "attn" || kind == "mlp"))
      return {layer, kind};
  }
  fail("{}: expected a space such as layers.0.mlp", name);
}

void read_importance(const Hdf5Reader& file, ProfileFile& profile) {
  if (!file.contains("/importance")) return;
  profile.metrics = file.list("/importance");
  for (const std::string& metric : profile.metrics) {
    std::map<std::string, std::map<int64_t, Units>> found;
    for (const std::string& space : file.list("/importance/" + metric)) {
      const auto [layer, kind] = parse_space(space);
      const std::string place = fmt::format("/importance/{}/{}", metric, space);
      auto values = file.floats(place);
      if (values.empty()) fail("{}: no units", place);
      found[kind].emplace(layer, units_of(std::move(values)));
    }
    for (auto& [kind, by_layer] : found) {
      MetricLayers& layers = profile.importance.emplace_back();
      layers.metric = metric;
      layers.kind = kind;
      for (auto& [layer, units] : by_layer) {
        if (layer != static_cast<int64_t>(layers.layers.size()))
          fail("/importance/{}: layers.{}.{} is missing", metric, layers.layers.size(), kind);
        layers.layers.push_back(std::move(units));
      }
      profile.n_layers = std::max(profile.n_layers, static_cast<int64_t>(layers.layers.size()));
    }
  }
}

ProfileFile read_profile(const fs::path& path) {
  const Hdf5Reader file(path);
  return with_context(path.string(), [&] {
    if (!file.has_attribute("format") || file.string_attribute("format") != "elastify.profile")
      fail("an HDF5 file, but not a profile");
    ProfileFile profile;
    profile.spec_hash = file.string_attribute("spec_hash");
    profile.corpus = file.string_attribute("corpus");
    profile.corpus_digest = file.string_attribute("corpus_digest");
    profile.tokens = file.integer_attribute("tokens");
    profile.seq_len = file.integer_attribute("seq_len");
    profile.seed = file.integer_attribute("seed");
    profile.base_loss = file.number_attribute("base_loss");
    read_importance(file, profile);
    for (const LayerSeries& known : kLayerSeries) {
      const std::string place = fmt::format("/layers/{}", known.name);
      if (!file.contains(place)) continue;
      profile.layers.push_back(known);
      profile.layers.back().values = file.doubles(place);
      profile.n_layers =
          std::max(profile.n_layers, static_cast<int64_t>(profile.layers.back().values.size()));
    }
    for (const LayerSeries& series : profile.layers)
      if (static_cast<int64_t>(series.values.size()) != profile.n_layers)
        fail("/layers/{}: expected {} layers, got {}", series.name, profile.n_layers, series.values.size());
    for (const MetricLayers& measured : profile.importance)
      if (static_cast<int64_t>(measured.layers.size()) != profile.n_layers)
        fail("/importance/{}: expected {} layers of {}, got {}", measured.metric, profile.n_layers,
             measured.kind, measured.layers.size());
    profile.inputs = file.contains("/inputs");
    if (file.contains("/moments"))
      for (const std::string& space : file.list("/moments")) {
        ++profile.n_moments;
        profile.moments_bytes += file.stored_bytes("/moments/" + space);
      }
    return profile;
  });
}

constexpr double kTop[] = {0.2, 0.5};
constexpr double kMost = 0.9;

/// What is said of the importance in a space, as a number per space.
struct Figure {
  const char* key;
  double alike;  ///< if all units were equally important
  std::function<double(const Units&)> of;
};
const std::vector<Figure>& figures() {
  static const std::vector<Figure> all{
      {"top_20_percent", kTop[0], [](const Units& units) { return units.top(kTop[0]); }},
      {"top_50_percent", kTop[1], [](const Units& units) { return units.top(kTop[1]); }},
      {"units_for_90_percent", kMost, [](const Units& units) { return units.needed_for(kMost); }}};
  return all;
}

/// Mean over the layers, and the layers with the smallest and the largest value.
struct Spread {
  double mean = 0;
  size_t lowest = 0, highest = 0;
  double low = 0, high = 0;
};
Spread spread_of(const MetricLayers& measured, const Figure& figure) {
  Spread spread;
  for (size_t layer = 0; layer < measured.layers.size(); ++layer) {
    const double value = figure.of(measured.layers[layer]);
    spread.mean += value / static_cast<double>(measured.layers.size());
    if (layer == 0 || value < spread.low) spread.low = value, spread.lowest = layer;
    if (layer == 0 || value > spread.high) spread.high = value, spread.highest = layer;
  }
  return spread;
}

ordered_json to_json(const ProfileFile& profile, const fs::path& path) {
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

/// What the bars of a column of values show: linear, or three decades where one layer would hide the others.
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

/// Sensitivity by layer, and how uneven the units are by the metric that stands for the others here.
std::string layer_table(const ProfileFile& profile) {
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

std::string range_of_units(const MetricLayers& measured) {
  const auto [least, most] = std::minmax_element(measured.layers.begin(), measured.layers.end(),
                                                 [](const Units& a, const Units& b) { return a.n < b.n; });
  return least->n == most->n ? fmt::format("{}", most->n) : fmt::format("{}-{}", least->n, most->n);
}

std::string concentration_table(const ProfileFile& profile) {
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
    row(measured.metric, fmt::format("{} {}", range_of_units(measured), measured.noun()),
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

std::string to_text(const ProfileFile& profile, const fs::path& path) {
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

/// Cumulative shares, thinned to what can be seen.
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
                                   range_of_units(measured)),
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

/// Logarithmic where that shows more.
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

std::string to_svg(const ProfileFile& profile, const fs::path& path) {
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
  return elastify::to_svg(
      fmt::format("{}: {} tokens of {}", path.filename().string(), profile.tokens, corpus), rows);
}

}  // namespace

Report inspect_profile(const fs::path& path, const fs::path& plot, bool force) {
  if (!plot.empty()) require_absent(plot, force);
  const ProfileFile profile = read_profile(path);
  Report report{.json = to_json(profile, path), .text = to_text(profile, path)};
  if (!plot.empty()) {
    write_text(plot, to_svg(profile, path));
    report.json["plot"] = plot.string();
    report.text += fmt::format("\nplot -> {}\n", plot.string());
  }
  return report;
}

}  // namespace elastify::cli
