#include "io/ggml_blocks.h"

#include <array>
#include <bit>
#include <cstring>

#include "io/half.h"

namespace elastify::ggml {
namespace {

constexpr int kSmall = 32;   // elements of a q4_0 .. q8_0 block
constexpr int kSuper = 256;  // elements of a K-quant block

template <typename T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

float load_f16(const std::byte* bytes) {
  return half::from_f16(load<uint16_t>(bytes));
}

// Single bits come from a table, because not every vector unit can shift each element by a count of its own.
constexpr auto kBit = [] {
  std::array<uint32_t, 32> bits{};
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint32_t{1} << i;
  return bits;
}();

const uint8_t* as_u8(const std::byte* bytes) {
  return reinterpret_cast<const uint8_t*>(bytes);
}

// Scale and minimum of run `i` of a q4_K or q5_K block. The first four runs have theirs in the low 6 bits of
// bytes 0..3 and 4..7. The others have 4 bits each in bytes 8..11, and their top 2 bits above those of the
// first four.
struct RunScale {
  uint8_t scale, minimum;
};
RunScale run_scale(const uint8_t* s, int i) {
  if (i < 4) return {static_cast<uint8_t>(s[i] & 63), static_cast<uint8_t>(s[i + 4] & 63)};
  return {static_cast<uint8_t>((s[i + 4] & 15) | (s[i - 4] >> 6 << 4)),
          static_cast<uint8_t>((s[i + 4] >> 4) | (s[i] >> 6 << 4))};
}

}  // namespace

void decode_q4_0(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 18, target += kSmall) {
    const float d = load_f16(source);
    const uint8_t* q = as_u8(source + 2);
    for (int i = 0; i < 16; ++i) target[i] = static_cast<float>((q[i] & 15) - 8) * d;
    for (int i = 0; i < 16; ++i) target[i + 16] = static_cast<float>((q[i] >> 4) - 8) * d;
  }
}

void decode_q4_1(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 20, target += kSmall) {
    const float d = load_f16(source);
    const float m = load_f16(source + 2);
    const uint8_t* q = as_u8(source + 4);
    for (int i = 0; i < 16; ++i) target[i] = static_cast<float>(q[i] & 15) * d + m;
    for (int i = 0; i < 16; ++i) target[i + 16] = static_cast<float>(q[i] >> 4) * d + m;
  }
}

void decode_q5_0(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 22, target += kSmall) {
    const float d = load_f16(source);
    const auto high = load<uint32_t>(source + 2);
    const uint8_t* q = as_u8(source + 6);
    for (int i = 0; i < 16; ++i) {
      const int bit = (high & kBit[i]) != 0 ? 16 : 0;
      target[i] = static_cast<float>(((q[i] & 15) | bit) - 16) * d;
    }
    for (int i = 0; i < 16; ++i) {
      const int bit = (high & kBit[i + 16]) != 0 ? 16 : 0;
      target[i + 16] = static_cast<float>((q[i] >> 4 | bit) - 16) * d;
    }
  }
}

void decode_q5_1(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 24, target += kSmall) {
    const float d = load_f16(source);
    const float m = load_f16(source + 2);
    const auto high = load<uint32_t>(source + 4);
    const uint8_t* q = as_u8(source + 8);
    for (int i = 0; i < 16; ++i) {
      const int bit = (high & kBit[i]) != 0 ? 16 : 0;
      target[i] = static_cast<float>((q[i] & 15) | bit) * d + m;
    }
    for (int i = 0; i < 16; ++i) {
      const int bit = (high & kBit[i + 16]) != 0 ? 16 : 0;
      target[i + 16] = static_cast<float>(q[i] >> 4 | bit) * d + m;
    }
  }
}

void decode_q8_0(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 34, target += kSmall) {
    const float d = load_f16(source);
    const auto* q = reinterpret_cast<const int8_t*>(source + 2);
    for (int i = 0; i < kSmall; ++i) target[i] = static_cast<float>(q[i]) * d;
  }
}

void decode_q4_k(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 144, target += kSuper) {
    const float d = load_f16(source);
    const float m = load_f16(source + 2);
    const uint8_t* s = as_u8(source + 4);
    for (int run = 0; run < 8; run += 2) {  // 32 bytes hold two runs: the low nibbles, then the high ones
      const uint8_t* q = as_u8(source + 16) + run / 2 * 32;
      float* y = target + run * 32;
      const RunScale low = run_scale(s, run);
      const RunScale high = run_scale(s, run + 1);
      const float d_low = d * low.scale, m_low = m * low.minimum;
      const float d_high = d * high.scale, m_high = m * high.minimum;
      for (int i = 0; i < 32; ++i) y[i] = d_low * static_cast<float>(q[i] & 15) - m_low;
      for (int i = 0; i < 32; ++i) y[i + 32] = d_high * static_cast<float>(q[i] >> 4) - m_high;
    }
  }
}

void decode_q5_k(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 176, target += kSuper) {
    const float d = load_f16(source);
    const float m = load_f16(source + 2);
    const uint8_t* s = as_u8(source + 4);
    const uint8_t* h = as_u8(source + 16);  // bit r of byte i: the fifth bit of element i of run r
    for (int run = 0; run < 8; run += 2) {
      const uint8_t* q = as_u8(source + 48) + run / 2 * 32;
      float* y = target + run * 32;
      const RunScale low = run_scale(s, run);
      const RunScale high = run_scale(s, run + 1);
      const float d_low = d * low.scale, m_low = m * low.minimum;
      const float d_high = d * high.scale, m_high = m * high.minimum;
      for (int i = 0; i < 32; ++i)
        y[i] = d_low * static_cast<float>((q[i] & 15) | (h[i] >> run & 1) << 4) - m_low;
      for (int i = 0; i < 32; ++i)
        y[i + 32] = d_high * static_cast<float>(q[i] >> 4 | (h[i] >> (run + 1) & 1) << 4) - m_high;
    }
  }
}

void decode_q6_k(const std::byte* __restrict source, float* __restrict target, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += 210, target += kSuper) {
    const auto* s = reinterpret_cast<const int8_t*>(source + 192);
    const float d = load_f16(source + 208);
    for (int run = 0; run < 16; ++run) {
      // Each half of the block (8 runs) has 64 bytes of low nibbles and 32 bytes of high bit pairs. A byte's
      // two nibbles are 64 elements apart, its four bit pairs 32 elements.
      const int part = run / 8, quarter = run % 8 / 2, offset = run % 2 * 16;
      const uint8_t* l = as_u8(source) + part * 64 + quarter % 2 * 32 + offset;
      const uint8_t* h = as_u8(source + 128) + part * 32 + offset;
      const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
      const float scale = d * static_cast<float>(s[run]);
      float* y = target + run * 16;
      for (int i = 0; i < 16; ++i) {
        const int q = (l[i] >> low_shift & 15) | (h[i] >> high_shift & 3) << 4;
        y[i] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

}  // namespace elastify::ggml
