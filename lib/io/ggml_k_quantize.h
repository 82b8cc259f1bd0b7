#pragma once

#include <cstddef>
#include <cstdint>

#include "io/isa.h"

// Encoders of ggml's K-quants, blocks of 256 (layouts: ggml_blocks.h). Every block stands alone.
//
// What is minimised is sum_j w_j (x_j - y_j)^2. w_j is the importance of the column; without any it is r +
// |x_j|, r the root mean square of the run, so that large weights count more. Per run (16 or 32 elements with
// a scale, and in q4_K and q5_K a minimum), from a row of step widths: round, fit scale and minimum to the
// rounded numbers in closed form, and keep the best; the best is rounded and fitted again until nothing
// improves or twice. Then, three times over, scales and minima are rounded to multiples of the block's d and
// m, these are fitted to all of the block, and elements are rounded again.
//
// \param importance  [256 n_blocks], of each element's column, finite and >= 0; null: all 1
// \throws Error  for infinities, NaNs and values whose scale or minimum does not fit f16

namespace elastify::ggml {

void encode_q4_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance,
                 Isa isa = best_isa());
void encode_q5_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance,
                 Isa isa = best_isa());
void encode_q6_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance,
                 Isa isa = best_isa());

}  // namespace elastify::ggml
