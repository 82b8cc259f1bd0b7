#pragma once

#include <cstddef>
#include <cstdint>

// ggml's quantised blocks. Each function decodes `n_blocks` consecutive blocks. f16 is an IEEE
// half, u8 x[n] are n bytes, nibbles and bits are counted from the low end; y is the block's output.
//
//   q4_0  32  f16 d | u8 q[16]                 y[i] = (nibble - 8) d        low nibbles 0..15, high 16..31
//   q4_1  32  f16 d, m | u8 q[16]              y[i] = nibble d + m
//   q5_0  32  f16 d | u8 h[4] | u8 q[16]       y[i] = ((nibble | bit i of h << 4) - 16) d
//   q5_1  32  f16 d, m | u8 h[4] | u8 q[16]    y[i] = (nibble | bit i of h << 4) d + m
//   q8_0  32  f16 d | i8 q[32]                 y[i] = q[i] d
//   q4_K 256  f16 d, m | u8 s[12] | u8 q[128]              8 runs of 32, each with a 6-bit scale and
//   q5_K 256  f16 d, m | u8 s[12] | u8 h[32] | u8 q[128]   minimum in s: y[i] = (d scale) q - m minimum
//   q6_K 256  u8 l[128] | u8 h[64] | i8 s[16] | f16 d      16 runs of 16: y[i] = (d s) (q - 32)
//
// Encoders: ggml_quantize.h, ggml_k_quantize.h.
//
// Source of the layouts: ggml/src/ggml-common.h

namespace elastify::ggml {

void decode_q4_0(const std::byte* source, float* target, int64_t n_blocks);
void decode_q4_1(const std::byte* source, float* target, int64_t n_blocks);
void decode_q5_0(const std::byte* source, float* target, int64_t n_blocks);
void decode_q5_1(const std::byte* source, float* target, int64_t n_blocks);
void decode_q8_0(const std::byte* source, float* target, int64_t n_blocks);
void decode_q4_k(const std::byte* source, float* target, int64_t n_blocks);
void decode_q5_k(const std::byte* source, float* target, int64_t n_blocks);
void decode_q6_k(const std::byte* source, float* target, int64_t n_blocks);

}  // namespace elastify::ggml
