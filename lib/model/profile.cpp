#include "model/profile.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/ranges.h>

#include "base/error.h"
#include "io/hdf5.h"
#include "model/permutation.h"

namespace elastify {
namespace {

constexpr const char* kFormat = "elastify.profile";
constexpr int64_t kVersion = 1;
constexpr const char* kAgain = "this profile was measured on another model; run `elastify profile` again";

constexpr options::Named<Metric> kMetrics[] = {
    {Metric::kTaylor, "taylor", "first-order change of the loss when the unit is removed"},
    {Metric::kTaylorElement, "taylor-element", "the same, weight by weight: the paper's choice"},
    {Metric::kFisher, "fisher", "squared gradients of the units' masks"},
    {Metric::kWanda, "wanda", "size of the weights times the norm of their inputs"},
    {Metric::kWifv, "wifv", "variance of the inputs times the squared weights (FLAP)"},
    {Metric::kActivation, "activation", "mean size of the unit's activations"},
    {Metric::kMagnitude, "magnitude", "L2 norm of the unit's weights; needs no text"},
    {Metric::kRandom, "random", "seeded noise: the floor that every metric must beat; needs no text"},
    {Metric::kImatrix, "imatrix", "wanda from llama.cpp's importance matrix; needs no text"},
    {Metric::kObs, "obs", "backward elimination; the remaining units make up for each that goes"},
    {Metric::kForward, "forward", "forward selection of the units that explain most of the output"},
    {Metric::kGram, "gram", "backward elimination by the error of the output, nothing made up for"},
    {Metric::kHybrid, "hybrid", "backward elimination down to half of the units, forward selection within"}};
constexpr std::string_view kSiteNames[] = {"attn_input", "attn_out", "ffn_input", "ffn_down"};

int64_t n_columns(const ModelSpec& spec, size_t space) {
  const AxisSpace& found = spec.spaces[space];
  return n_inputs(spec, found.layer, found.kind == SpaceKind::kMlp ? Site::kFfnDown : Site::kAttnOut);
}

struct LayerValue {
  std::string_view name;
  std::vector<double> Profile::*values;
};
constexpr LayerValue kLayerValues[] = {{"removal_loss", &Profile::removal_loss},
                                       {"block_influence", &Profile::block_influence},
                                       {"attention_influence", &Profile::attention_influence},
                                       {"mlp_influence", &Profile::mlp_influence}};

std::string inputs_path(size_t index) {
  return fmt::format("/inputs/layers.{}.{}", index / 4, name_of(kSites[index % 4]));
}
std::string moments_path(const ModelSpec& spec, size_t space) {
  return "/moments/" + spec.spaces[space].name;
}

/// \throws Error naming the first space that differs
void check_profile(const Profile& profile, const ModelSpec& spec) {
  for (const auto& [metric, values] : profile.importance) {
    if (values.size() != spec.spaces.size())
      throw Error(fmt::format("expected importance of {} spaces, got {}", spec.spaces.size(), values.size()),
                  kAgain);
    for (size_t i = 0; i < values.size(); ++i) {
      const AxisSpace& space = spec.spaces[i];
      if (static_cast<int64_t>(values[i].size()) != space.n_units)
        throw Error(fmt::format("{}: expected {} units, got {}", space.name, space.n_units, values[i].size()),
                    kAgain);
    }
  }
  for (const auto& [name, values] : kLayerValues)
    if (const auto n = static_cast<int64_t>((profile.*values).size()); n != 0 && n != spec.n_layers)
      throw Error(fmt::format("{}: expected {} layers, got {}", name, spec.n_layers, n), kAgain);
  for (size_t i = 0; i < profile.inputs.size(); ++i) {
    const auto layer = static_cast<int64_t>(i) / 4;
    const int64_t expected = layer < spec.n_layers ? n_inputs(spec, layer, kSites[i % 4]) : 0;
    for (const auto* values : {&profile.inputs[i].mean, &profile.inputs[i].mean_square})
      if (static_cast<int64_t>(values->size()) != expected)
        throw Error(fmt::format("inputs of layers.{}.{}: expected {} columns, got {}", layer,
                                name_of(kSites[i % 4]), expected, values->size()),
                    kAgain);
  }
  if (profile.spec_hash != spec_hash(spec)) throw Error("the profile belongs to another model", kAgain);
}

}  // namespace

std::span<const options::Named<Metric>> names_of(Metric) {
  return kMetrics;
}

std::string_view name_of(Metric metric) {
  return options::name_in_table(metric);
}

Metric metric_named(std::string_view name) {
  return options::value_in_table<Metric>("metric", name);
}

const std::vector<Metric>& all_metrics() {
  static const std::vector<Metric> metrics = [] {
    std::vector<Metric> known;
    for (const auto& metric : kMetrics) known.push_back(metric.value);
    return known;
  }();
  return metrics;
}

bool needs_data(Metric metric) {
  return metric != Metric::kMagnitude && metric != Metric::kRandom && metric != Metric::kImatrix;
}

int64_t n_inputs(const ModelSpec& spec, int64_t layer, Site site) {
  if (site == Site::kFfnDown) return spec.layer_d_ff[static_cast<size_t>(layer)];
  if (site == Site::kAttnOut)
    return spec.layer_kv_heads[static_cast<size_t>(layer)] * spec.layer(layer).heads_per_group *
           spec.head_dim;
  return spec.d_model;
}

bool needs_second_moments(Metric metric) {
  return metric == Metric::kObs || metric == Metric::kForward || metric == Metric::kGram ||
         metric == Metric::kHybrid;
}

std::string_view name_of(Site site) {
  return kSiteNames[static_cast<size_t>(site)];
}

void save_profile(const Profile& profile, const ModelSpec& spec, const fs::path& path,
                  const MomentSource& moments) {
  check_profile(profile, spec);
  Hdf5Writer file(path);
  file.attribute("format", std::string_view(kFormat));
  file.attribute("version", kVersion);
  file.attribute("spec_hash", std::string_view(profile.spec_hash));
  if (!profile.permutation_digest.empty())
    file.attribute("permutation_digest", std::string_view(profile.permutation_digest));
  file.attribute("corpus", std::string_view(profile.corpus));
  file.attribute("corpus_digest", std::string_view(profile.corpus_digest));
  file.attribute("tokens", profile.n_tokens);
  file.attribute("seq_len", profile.seq_len);
  file.attribute("seed", profile.seed);
  file.attribute("base_loss", profile.base_loss);
  for (const auto& [metric, values] : profile.importance) {
    for (size_t i = 0; i < values.size(); ++i)
      file.write(fmt::format("/importance/{}/{}", name_of(metric), spec.spaces[i].name),
                 std::span<const float>(values[i]));
  }
  for (const auto& [name, values] : kLayerValues)
    if (!(profile.*values).empty())
      file.write(fmt::format("/layers/{}", name), std::span<const double>(profile.*values));
  for (size_t i = 0; i < profile.inputs.size(); ++i) {
    const std::string group = inputs_path(i);
    file.write(group + "/mean", std::span<const double>(profile.inputs[i].mean));
    file.write(group + "/mean_square", std::span<const double>(profile.inputs[i].mean_square));
  }
  if (moments)
    for (size_t i = 0; i < spec.spaces.size(); ++i)
      file.write_symmetric(moments_path(spec, i), moments(i), n_columns(spec, i));
  file.commit();
}

Profile load_profile(const fs::path& path, const ModelSpec& spec) {
  const Hdf5Reader file(path);
  return with_context(path.string(), [&] {
    if (!file.has_attribute("format") || file.string_attribute("format") != kFormat)
      fail("not a profile file (attribute format is not {})", kFormat);
    if (const int64_t version = file.integer_attribute("version"); version != kVersion)
      fail("version {} of the format is not supported; supported is {}", version, kVersion);
    Profile profile;
    profile.spec_hash = file.string_attribute("spec_hash");
    if (file.has_attribute("permutation_digest"))
      profile.permutation_digest = file.string_attribute("permutation_digest");
    profile.corpus = file.string_attribute("corpus");
    profile.corpus_digest = file.string_attribute("corpus_digest");
    profile.n_tokens = file.integer_attribute("tokens");
    profile.seq_len = file.integer_attribute("seq_len");
    profile.seed = file.integer_attribute("seed");
    profile.base_loss = file.number_attribute("base_loss");
    const std::vector<std::string> metrics =
        file.contains("/importance") ? file.list("/importance") : std::vector<std::string>{};
    for (const std::string& name : metrics) {
      auto& values = profile.importance[metric_named(name)];
      for (const AxisSpace& space : spec.spaces) {
        const std::string place = fmt::format("/importance/{}/{}", name, space.name);
        if (!file.contains(place)) throw Error(fmt::format("{}: no {} importance", space.name, name), kAgain);
        values.push_back(file.floats(place));
      }
    }
    for (const auto& [layer_value, values] : kLayerValues)
      if (const std::string place = fmt::format("/layers/{}", layer_value); file.contains(place))
        profile.*values = file.doubles(place);
    if (file.contains("/inputs"))
      for (size_t i = 0; i < static_cast<size_t>(4 * spec.n_layers); ++i)
        profile.inputs.push_back(
            {file.doubles(inputs_path(i) + "/mean"), file.doubles(inputs_path(i) + "/mean_square")});
    check_profile(profile, spec);
    return profile;
  });
}

bool has_second_moments(const fs::path& path) {
  return Hdf5Reader(path).contains("/moments");
}

SecondMoments load_second_moments(const fs::path& path, const ModelSpec& spec, size_t space) {
  const Hdf5Reader file(path);
  return with_context(path.string(), [&] {
    const std::string place = moments_path(spec, space);
    if (file.string_attribute("spec_hash") != spec_hash(spec))
      throw Error("the profile belongs to another model", kAgain);
    if (!file.contains(place))
      throw Error(fmt::format("{}: no second moments", spec.spaces[space].name),
                  "run `elastify profile` with --second-moments");
    const size_t input =
        static_cast<size_t>(4 * spec.spaces[space].layer) +
        static_cast<size_t>(spec.spaces[space].kind == SpaceKind::kMlp ? Site::kFfnDown : Site::kAttnOut);
    SecondMoments moments{.n = n_columns(spec, space),
                          .xtx = file.symmetric(place, n_columns(spec, space)),
                          .mean = file.doubles(inputs_path(input) + "/mean"),
                          .n_tokens = file.integer_attribute("tokens")};
    if (static_cast<int64_t>(moments.mean.size()) != moments.n)
      fail("{}: expected means of {} columns, got {}", spec.spaces[space].name, moments.n,
           moments.mean.size());
    return moments;
  });
}

Permutation rank_units(const Profile& profile, const ModelSpec& spec, Metric metric) {
  const auto measured = profile.importance.find(metric);
  if (measured == profile.importance.end()) {
    std::vector<std::string_view> names;
    for (const auto& [known, values] : profile.importance) names.push_back(name_of(known));
    throw Error(fmt::format("the profile has no {} importance, only: {}", name_of(metric),
                            names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))),
                fmt::format("run `elastify profile` with the metric {}", name_of(metric)));
  }
  require_all_halves(spec, "reordering");
  check_profile(profile, spec);
  Permutation permutation = identity_permutation(spec);
  permutation.metric = name_of(metric);
  for (size_t i = 0; i < spec.spaces.size(); ++i) {
    const std::vector<float>& importance = measured->second[i];
    for (size_t unit = 0; unit < importance.size(); ++unit) {
      if (!std::isfinite(importance[unit]))
        fail("{}: {} importance of unit {} is {}", spec.spaces[i].name, name_of(metric), unit,
             importance[unit]);
    }
    std::stable_sort(permutation.orders[i].begin(), permutation.orders[i].end(), [&](int64_t a, int64_t b) {
      return importance[static_cast<size_t>(a)] > importance[static_cast<size_t>(b)];
    });
  }
  return permutation;
}

}  // namespace elastify
