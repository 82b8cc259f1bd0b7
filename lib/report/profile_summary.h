#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/file.h"

namespace elastify::report {

/// How the importance of one space is spread over its units. Negative importance counts as none.
struct Units {
  int64_t n = 0;
  int64_t not_finite = 0;
  std::vector<double> held;  ///< [n + 1]: share of all importance that the i most important units hold

  /// Share held by the most important fraction of the units.
  double top(double fraction) const;
  /// The smallest fraction of the units that holds this share.
  double needed_for(double share) const;
};

/// One metric on the spaces of one kind: [n_layers].
struct MetricLayers {
  std::string metric, kind;  ///< "attn" or "mlp"
  std::vector<Units> layers;

  const char* noun() const { return kind == "attn" ? "KV groups" : "neurons"; }
  /// "2" units or, where layers differ, "1-3".
  std::string range_of_units() const;
};

/// One number per layer.
struct LayerSeries {
  const char* name;    ///< of the dataset and the key in JSON
  const char* column;  ///< heading
  const char* curve;   ///< in the legend of the chart
  const char* explained;
  std::vector<double> values;
};

/// The contents of a profile's file, with each space's importances reduced to their concentration.
struct ProfileSummary {
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

  /// The metric that stands for the others where there is room for one: taylor, or the first one measured.
  std::string main_metric() const;
};

/// Reads a profile without its model.
/// \throws Error  naming file and place for what is not a profile
ProfileSummary read_profile_summary(const fs::path& path);

/// A number that tells how uneven the units of a space are.
struct Figure {
  const char* key;
  double alike;  ///< if all units were equally important
  std::function<double(const Units&)> of;
};
/// Share of the importance in the best fifth and the best half of the units; share of the units that hold
/// nine tenths of the importance.
const std::vector<Figure>& figures();

/// Mean over the layers, and the layers with the smallest and the largest value.
struct Spread {
  double mean = 0;
  size_t lowest = 0, highest = 0;
  double low = 0, high = 0;
};
Spread spread_of(const MetricLayers& measured, const Figure& figure);

}  // namespace elastify::report
