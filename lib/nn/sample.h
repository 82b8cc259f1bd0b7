#pragma once

#include <cstdint>
#include <vector>

#include "nn/decoder.h"

namespace elastify::nn {

/// Text sampled from the model itself (calibration without data): `n` sequences of `seq_len` ids that begin
/// with `first_id`, temperature 1, all sequences in one batch. Deterministic for a seed and thread count.
std::vector<std::vector<int32_t>> sample_sequences(const Decoder& decoder, int64_t n, int64_t seq_len,
                                                   int32_t first_id, uint64_t seed);

}  // namespace elastify::nn
