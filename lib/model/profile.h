#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "model/spec.h"
#include "options/named.h"

namespace elastify {

/// How the importance of a unit is measured. A unit is an MLP neuron or a KV group; its activations a are its
/// columns of the inputs of `down` or `o` (1 for a neuron, heads_per_group * head_dim for a KV group).
enum class Metric : uint8_t {
  kTaylor,  ///< sum over sequences of |sum_t a_t dL/da_t|: first-order loss change on removal
  /// Sum over all weights of the unit of |w dL/dw|, gradients over all of the data. Source: ElastiLM,
  /// arXiv:2409.09071, Eq. 2; LLM-Pruner, arXiv:2305.11627, Eq. 5
  kTaylorElement,
  kFisher,      ///< sum over sequences of (sum_t a_t dL/da_t)^2
  kWanda,       ///< mean_i |W_ij| * ||X_j||, summed over the unit's columns j. Source: arXiv:2306.11695
  kWifv,        ///< Var(X_j) * ||W_:j||^2, summed over the unit's columns j. Source: FLAP, arXiv:2312.11983
  kActivation,  ///< mean over tokens of ||a||. Source: Minitron, arXiv:2407.14679, section 2.2
  kMagnitude,   ///< L2 norm of the unit's weights; needs no data
  kRandom,      ///< seeded noise, the baseline that every metric must beat; needs no data
  kImatrix,     ///< wanda from an importance matrix that llama.cpp measured; needs no forward pass
  // The following give orders, not scores. Ranking computes them from second moments, see lib/solve.
  kObs,      ///< backward elimination; the remaining units compensate for each removed one
  kForward,  ///< forward selection of the units that explain most of the projection's output
  /// Backward elimination without compensation. Each step removes the unit that, together with all units
  /// removed before, changes the projection's output least.
  kGram,
  kHybrid,  ///< backward elimination down to half of the units, forward selection within that half
};
/// Every metric with a line of help.
std::span<const options::Named<Metric>> names_of(Metric);
std::string_view name_of(Metric metric);
/// \throws UsageError  listing the known metrics
Metric metric_named(std::string_view name);
const std::vector<Metric>& all_metrics();
/// Whether the metric is measured on text. The others are computed from the weights or a file.
bool needs_data(Metric metric);
/// Whether ranking by the metric needs second moments. A profile holds no scores for such a metric.
bool needs_second_moments(Metric metric);

/// The four inputs of a layer's matrix products: those of q, k, v; of o; of gate, up; and of down.
enum class Site : uint8_t { kAttnInput, kAttnOut, kFfnInput, kFfnDown };
inline constexpr Site kSites[] = {Site::kAttnInput, Site::kAttnOut, Site::kFfnInput, Site::kFfnDown};
/// Number of columns of the input at this site.
int64_t n_inputs(const ModelSpec& spec, int64_t layer, Site site);
std::string_view name_of(Site site);  ///< "attn_input", "attn_out", "ffn_input", "ffn_down"

/// Means of the inputs at one site, over all calibration tokens.
struct InputMeans {
  std::vector<double> mean, mean_square;  ///< [in]
};

/// Measured importance of every unit, per metric, and of every layer.
struct Profile {
  std::string spec_hash;
  std::string permutation_digest;  ///< of the measured reordered model; empty: original order
  std::map<Metric, std::vector<std::vector<float>>> importance;  ///< [spaces][n_units]; higher = keep
  /// Rise of the mean next-token loss when a layer is left out, nats per token, [n_layers]; empty if not
  /// measured.
  std::vector<double> removal_loss;
  /// Mean over tokens of 1 - cos(before, after) of the residual stream over a whole layer, its attention half
  /// and its MLP half, [n_layers]; empty if not measured. Source: ShortGPT, arXiv:2403.03853, Eq. 1
  std::vector<double> block_influence, attention_influence, mlp_influence;
  std::vector<InputMeans> inputs;  ///< [4 * layer + site]; empty if not measured
  double base_loss = 0;            ///< nats per token of the whole model on the same tokens
  std::string corpus;              ///< source of the tokens, in words
  std::string corpus_digest;
  int64_t n_tokens = 0, seq_len = 0;
  int64_t seed = 0;
};

/// Second moments of the inputs of o or down of one layer: X^T X over all calibration tokens.
struct SecondMoments {
  int64_t n = 0;             ///< columns
  std::vector<double> xtx;   ///< [n, n], symmetric
  std::vector<double> mean;  ///< [n]
  int64_t n_tokens = 0;
};

/// Returns X^T X of a space, [n, n]. Only the lower triangle is read. It is called once per space.
using MomentSource = std::function<std::vector<double>(size_t space)>;

/// HDF5, see docs/formats.md.
/// \param moments  written beside the importances, one space in memory at a time
void save_profile(const Profile& profile, const ModelSpec& spec, const fs::path& path,
                  const MomentSource& moments = nullptr);
/// Loads everything but the second moments.
/// \throws Error  if the profile was measured on another model, naming the first space that differs
Profile load_profile(const fs::path& path, const ModelSpec& spec);
bool has_second_moments(const fs::path& path);
/// \throws Error  if the profile has none
SecondMoments load_second_moments(const fs::path& path, const ModelSpec& spec, size_t space);

struct Permutation;
/// Orders the units of every space, most important first; ties keep their order. A profile may lack metrics
/// that need no data; the caller adds these first.
/// \throws Error  if the profile lacks the metric
/// Source: ElastiLM, arXiv:2409.09071, section 3.2
Permutation rank_units(const Profile& profile, const ModelSpec& spec, Metric metric);

}  // namespace elastify
