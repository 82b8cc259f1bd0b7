#pragma once

#include <cstddef>
#include <cstdint>

#include "io/isa.h"

// Encoders of ggml's blocks of 32 (layouts: ggml_blocks.h). Every block has the bytes that ggml's
// quantize_row_*_ref gives. Here d and m are the values before they are stored as f16:
//
//   q4_0, q5_0  d = x / -8, x / -16, x the value of largest magnitude (the first one, sign included)
//   q4_1, q5_1  m = min, d = (max - min) / 15, / 31
//   q8_0        d = max |x| / 127
//   q           (x - m) (1 / d), rounded half up; q8_0: half away from zero
//
// \throws Error  for infinities, NaNs and values whose scale or minimum does not fit f16

namespace elastify::ggml {

void encode_q4_0(const float* source, std::byte* target, int64_t n_blocks, Isa isa = best_isa());
void encode_q4_1(const float* source, std::byte* target, int64_t n_blocks, Isa isa = best_isa());
void encode_q5_0(const float* source, std::byte* target, int64_t n_blocks, Isa isa = best_isa());
void encode_q5_1(const float* source, std::byte* target, int64_t n_blocks, Isa isa = best_isa());
void encode_q8_0(const float* source, std::byte* target, int64_t n_blocks, Isa isa = best_isa());

}  // namespace elastify::ggml
