#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "model/spec.h"

namespace elastify {

/// How the importance of a unit is measured.
enum class Metric : uint8_t {
  kTaylor,     ///< sum over sequences of |sum_t a_t dL/da_t|: first-order loss change on removal
  kMagnitude,  ///< L2 norm of the unit's weights; needs no data
  kRandom,     ///< seeded noise: the floor that every metric must beat; needs no data
};
std::string_view name_of(Metric metric);
/// \throws UsageError listing the known metrics
Metric metric_named(std::string_view name);

/// Measured importance of every unit, per metric, and of every layer.
struct Profile {
  std::string spec_hash;
  std::map<Metric, std::vector<std::vector<float>>> importance;  ///< [spaces][n_units]; higher = keep
  /// Rise of the mean next-token loss when a layer is left out, nats per token, [n_layers]; empty if not
  /// measured.
  std::vector<double> removal_loss;
  double base_loss = 0;  ///< nats per token of the whole model on the same tokens
  std::string corpus;    ///< what the tokens came from, in words
  std::string corpus_digest;
  int64_t n_tokens = 0, seq_len = 0;
  int64_t seed = 0;
};

/// HDF5: attributes `format` = "elastify.profile", `version` = 1, `spec_hash`, `corpus`, `corpus_digest`,
/// `tokens`, `seq_len`, `seed`, `base_loss`; datasets /importance/<metric>/<space name> float32 [n_units],
/// /layers/removal_loss float64.
void save_profile(const Profile& profile, const ModelSpec& spec, const fs::path& path);
/// \throws Error if it was measured on another model, naming the first space that differs
Profile load_profile(const fs::path& path, const ModelSpec& spec);

/// Most important first; ties keep their order. Metrics that need no data may be absent from the profile: the
/// caller adds them. \throws Error if the profile lacks the metric Source: ElastiLM, arXiv:2409.09071,
/// section 3.2
struct Permutation;
Permutation rank_units(const Profile& profile, const ModelSpec& spec, Metric metric);

}  // namespace elastify
