#include "pipeline/order.h"

#include "base/error.h"
#include "profile/profile_model.h"
#include "solve/rank_by_moments.h"

namespace elastify::pipeline {

MomentSource moments_of(const fs::path& profile, const ModelSpec& spec) {
  if (!has_second_moments(profile)) return nullptr;
  return [profile, spec](size_t space) { return load_second_moments(profile, spec, space).xtx; };
}

Permutation rank(const Checkpoint& model, const Profile* profile, const MomentSource& moments, Metric metric,
                 int64_t seed, const std::string& device) {
  if (needs_second_moments(metric)) {
    if (profile == nullptr || !moments)
      throw UsageError(
          fmt::format("metric '{}' needs second moments, and the profile has none", name_of(metric)),
          "run `elastify profile` with --second-moments");
    return solve::rank_by_moments(model, moments, profile->n_tokens, metric, kMomentRidge, device);
  }
  Profile measured = profile != nullptr ? *profile : Profile{};
  measured.spec_hash = spec_hash(model.spec());
  if (measured.importance.count(metric) == 0) {
    if (needs_data(metric) || metric == Metric::kImatrix)
      throw UsageError(fmt::format("metric '{}' is not in the profile", name_of(metric)),
                       "profile with this metric, or choose another");
    profile::add_data_free_metric(measured, model, metric, seed);
  }
  return rank_units(measured, model.spec(), metric);
}

Checkpoint arranged(const Checkpoint& model, const Permutation& order) {
  return model.transformed([spec = model.spec(), order](size_t i, HostTensor tensor) {
    return permute(convert(tensor, DType::kF32), spec.tensors[i], order);
  });
}

}  // namespace elastify::pipeline
