#pragma once

#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/profile.h"

namespace elastify::solve {

/// Orders the units of every space by `obs` or `forward`, space by space.
/// \param moments  X^T X over `n_tokens` of what goes into o and down
/// \param ridge    added to the moments' diagonal, in units of its mean
/// \throws Error   naming the space whose moments do not do
Permutation rank_by_moments(const Checkpoint& checkpoint, const MomentSource& moments, int64_t n_tokens,
                            Metric metric, double ridge);

}  // namespace elastify::solve
