#pragma once

#include <cstdint>

#include "data/corpus.h"
#include "model/profile.h"
#include "nn/decoder.h"
#include "profile/options.h"

namespace elastify::profile {

/// Measures the metrics asked for. Importance: gradients of multiplicative unit masks (activation gradients
/// only), over all batches. Removal loss: the loss when each layer is left out, over the first
/// `removal_tokens`. The caller fills in what the batches came from (`corpus`). \throws Error  if the batches
/// are empty, or too long for the model Source: ElastiLM, arXiv:2409.09071, section 3.2, Eq. 2
Profile profile_model(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                      const ProfileOptions& options);

/// Metrics that need no data: magnitude (weights read tensor by tensor) and random (the same for a seed on
/// every platform).
void add_data_free_metric(Profile& profile, const Checkpoint& checkpoint, Metric metric, int64_t seed);

}  // namespace elastify::profile
