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

struct NamedMetric {
  Metric metric;
  std::string_view name;
};
constexpr NamedMetric kMetrics[] = {
    {Metric::kTaylor, "taylor"}, {Metric::kMagnitude, "magnitude"}, {Metric::kRandom, "random"}};

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
  const auto n_losses = static_cast<int64_t>(profile.removal_loss.size());
  if (n_losses != 0 && n_losses != spec.n_layers)
    throw Error(fmt::format("removal_loss: expected {} layers, got {}", spec.n_layers, n_losses), kAgain);
  if (profile.spec_hash != spec_hash(spec)) throw Error("the profile belongs to another model", kAgain);
}

}  // namespace

std::string_view name_of(Metric metric) {
  for (const NamedMetric& known : kMetrics) {
    if (known.metric == metric) return known.name;
  }
  fail("unknown metric {}", static_cast<int>(metric));
}

Metric metric_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const NamedMetric& known : kMetrics) {
    if (known.name == name) return known.metric;
    names.push_back(known.name);
  }
  throw UsageError(fmt::format("unknown metric \"{}\"; known are {}", name, fmt::join(names, ", ")));
}

void save_profile(const Profile& profile, const ModelSpec& spec, const fs::path& path) {
  check_profile(profile, spec);
  Hdf5Writer file(path);
  file.attribute("format", std::string_view(kFormat));
  file.attribute("version", kVersion);
  file.attribute("spec_hash", std::string_view(profile.spec_hash));
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
  if (!profile.removal_loss.empty())
    file.write("/layers/removal_loss", std::span<const double>(profile.removal_loss));
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
    if (file.contains("/layers/removal_loss")) profile.removal_loss = file.doubles("/layers/removal_loss");
    check_profile(profile, spec);
    return profile;
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
