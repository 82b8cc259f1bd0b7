#pragma once

#include <string>

#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/profile.h"

namespace elastify::pipeline {

/// Ridge for orders and errors: added to the diagonal of second moments, in units of its mean.
inline constexpr double kMomentRidge = 1e-3;

/// The second moments in a profile's file; null if it holds none.
MomentSource moments_of(const fs::path& profile, const ModelSpec& spec);

/// Orders the units of every space by a metric.
/// \param profile  may be null for a metric that needs no data
/// \param moments  null unless the metric is computed from second moments
/// \param device   for this computation
Permutation rank(const Checkpoint& model, const Profile* profile, const MomentSource& moments, Metric metric,
                 int64_t seed, const std::string& device = "cpu");

/// The model with its units in this order. Each tensor is converted to float32 and reordered as it is loaded.
Checkpoint arranged(const Checkpoint& model, const Permutation& order);

}  // namespace elastify::pipeline
