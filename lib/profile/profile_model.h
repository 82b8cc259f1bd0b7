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
  double pass_seconds = 0;  ///< of the pass over the batches, without layer removal
  MomentSource moments;     ///< X^T X, if wanted; read from `work_directory` if the model was streamed
};

/// Measures the metrics asked for in one pass over the batches, layer by layer if the decoder is streamed.
/// Each of several processes takes every n-th batch, and all return the same result. The removal loss is the
/// loss without each layer, over the first `removal_tokens`. The caller fills in where the batches came from
/// (`corpus`).
/// \param work_directory  for unfinished work and the files of streaming; the caller removes it once the
///                        result is saved. Empty: nothing is kept, and streaming is impossible
/// \throws Error  if the batches are empty, or too long for the model
/// Source: ElastiLM, arXiv:2409.09071, section 3.2, Eq. 2
Measured profile_model(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                       const ProfileOptions& options, const WorkOptions& work = {},
                       const fs::path& work_directory = {}, const Communicator& processes = {});

/// Adds a metric that needs no data: magnitude (weights are read tensor by tensor) or random (a seed gives
/// the same values on every platform).
void add_data_free_metric(Profile& profile, const Checkpoint& checkpoint, Metric metric, int64_t seed);

/// Adds wanda's scores, from mean squares that llama.cpp or an earlier profile measured.
/// \throws Error  naming the file if it is of another model
void add_imatrix_metric(Profile& profile, const Checkpoint& checkpoint, const fs::path& imatrix);

}  // namespace elastify::profile
