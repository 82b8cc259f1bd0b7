#include "report/profile_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "base/error.h"
#include "io/hdf5.h"
#include "model/profile.h"

namespace elastify::report {
namespace {

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

const LayerSeries kLayerSeries[] = {
    {"removal_loss", "removal", "removal", "rise of the loss without the layer, nats per token", {}},
    {"block_influence",
     "influence",
     "whole layer",
     "mean over tokens of 1 - cos(before, after) the layer",
     {}},
    {"attention_influence", "attn", "attention", "the same of its attention half", {}},
    {"mlp_influence", "mlp", "MLP", "the same of its MLP half", {}}};

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

void read_importance(const Hdf5Reader& file, ProfileSummary& profile) {
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

}  // namespace

double Units::top(double fraction) const {
  const double at = fraction * static_cast<double>(n);
  const auto below = std::min(static_cast<size_t>(at), static_cast<size_t>(n - 1));
  return held[below] + (at - static_cast<double>(below)) * (held[below + 1] - held[below]);
}

double Units::needed_for(double share) const {
  const auto above = std::lower_bound(held.begin() + 1, held.end() - 1, share);
  const double low = *(above - 1), step = *above - low;
  const double whole = static_cast<double>(above - held.begin() - 1);
  return (whole + (step > 0 ? std::clamp((share - low) / step, 0.0, 1.0) : 0)) / static_cast<double>(n);
}

std::string MetricLayers::range_of_units() const {
  const auto [least, most] = std::minmax_element(layers.begin(), layers.end(),
                                                 [](const Units& a, const Units& b) { return a.n < b.n; });
  return least->n == most->n ? fmt::format("{}", most->n) : fmt::format("{}-{}", least->n, most->n);
}

std::string ProfileSummary::main_metric() const {
  const std::string usual(name_of(Metric::kTaylor));
  const bool measured = std::find(metrics.begin(), metrics.end(), usual) != metrics.end();
  return measured || metrics.empty() ? usual : metrics.front();
}

ProfileSummary read_profile_summary(const fs::path& path) {
  const Hdf5Reader file(path);
  return with_context(path.string(), [&] {
    if (!file.has_attribute("format") || file.string_attribute("format") != "elastify.profile")
      fail("an HDF5 file, but not a profile");
    ProfileSummary profile;
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

const std::vector<Figure>& figures() {
  static constexpr double kTop[] = {0.2, 0.5};
  static constexpr double kMost = 0.9;

  static const std::vector<Figure> all{
      {"top_20_percent", kTop[0], [](const Units& units) { return units.top(kTop[0]); }},
      {"top_50_percent", kTop[1], [](const Units& units) { return units.top(kTop[1]); }},
      {"units_for_90_percent", kMost, [](const Units& units) { return units.needed_for(kMost); }}};
  return all;
}

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

}  // namespace elastify::report
