#pragma once

#include <cstdint>

#include "data/corpus.h"
#include "model/profile.h"
#include "nn/decoder.h"
#include "profile/communicator.h"
#include "profile/options.h"

namespace elastify::profile {

struct Measured {
  Profile profile;
  double pass_seconds = 0;  ///< of the pass over the batches, layer removal left out
  MomentSource moments;  ///< X^T X, if wanted; reads what `work_directory` holds where the model was streamed
};

/// Measures the metrics asked for, in one pass over the batches; layer by layer if the decoder is streamed.
/// Of several processes each takes every n-th batch, and all return the same. Removal loss: the loss when
/// each layer is left out, over the first `removal_tokens`. The caller fills in what the batches came from
/// (`corpus`).
/// \param work_directory  where unfinished work is kept, and what streaming puts on disk; to be removed once
/// the
///                        result is saved. Empty: none, which streaming cannot do without
/// \throws Error  if the batches are empty, or too long for the model
/// Source: ElastiLM, arXiv:2409.09071, section 3.2, Eq. 2
Measured profile_model(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                       const ProfileOptions& options, const WorkOptions& work = {},
                       const fs::path& work_directory = {}, const Communicator& processes = {});

/// Metrics that need no data: magnitude (weights read tensor by tensor), random (the same for a seed on every
/// platform).
void add_data_free_metric(Profile& profile, const Checkpoint& checkpoint, Metric metric, int64_t seed);

/// wanda's scores with mean squares that llama.cpp, or an earlier profile, measured.
/// \throws Error  naming the file if it is of another model
void add_imatrix_metric(Profile& profile, const Checkpoint& checkpoint, const fs::path& imatrix);

}  // namespace elastify::profile
