#pragma once

#include <cstddef>
#include <cstdint>

#include "io/isa.h"

// Encoders of ggml's K-quants, blocks of 256 (layouts: ggml_blocks.h). Blocks do not depend on each other.
//
// The encoders minimise sum_j w_j (x_j - y_j)^2. w_j is the importance of the column. Without importance it
// is r + |x_j|, where r is the root mean square of the run, so that large weights count more.
//
// For each run (16 or 32 elements with a scale, and in q4_K and q5_K a minimum) several step widths are
// tried: the elements are rounded, scale and minimum are fitted to the rounded numbers in closed form, and
// the best fit is kept. In q4_K and q5_K the best fit is rounded and fitted again, twice. Then scales and
// minima are rounded to multiples of the block's d and m. Three times over, each moves to the best
// neighbouring multiple, the elements are rounded, and d and m are fitted to the whole block.
//
// \param importance  [256 n_blocks], of each element's column, finite and >= 0; null: none given
// \throws Error  for infinities, NaNs and values whose scale or minimum does not fit f16

namespace elastify::ggml {

void encode_q4_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance,
                 Isa isa = best_isa());
void encode_q5_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance,
                 Isa isa = best_isa());
void encode_q6_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance,
                 Isa isa = best_isa());

}  // namespace elastify::ggml
