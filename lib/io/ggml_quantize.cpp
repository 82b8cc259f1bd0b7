#include "io/ggml_quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "io/half.h"

namespace elastify::ggml {
namespace {

constexpr int kBlock = 32;
constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

[[noreturn, gnu::noinline]] void refuse(const char* type, float largest) {
  if (!std::isfinite(largest)) fail("{}: found a value that is not finite", type);
  fail("{}: the largest value is {}, above what an f16 scale can hold", type, std::abs(largest));
}

// Maps floats to integers of the same order, NaNs outermost, and back. Comparisons of integers vectorise on
// every machine.
ELASTIFY_KERNEL int32_t ordered(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  return bits ^ (bits >> 31 & kMagnitude);
}
ELASTIFY_KERNEL float from_ordered(int32_t key) {
  return std::bit_cast<float>(key ^ (key >> 31 & kMagnitude));
}

struct Range {
  float low, high, largest;  ///< min x, max x, max |x|
};
ELASTIFY_KERNEL Range range_of(const char* type, const float* x) {
  int32_t low = ordered(x[0]), high = low;
  for (int i = 0; i < kBlock; ++i) {
    low = std::min(low, ordered(x[i]));
    high = std::max(high, ordered(x[i]));
  }
  const int32_t largest = std::max(high, ~low);  // the key of a negative number is the complement of its bits
  if (largest >= kInfinity) refuse(type, std::bit_cast<float>(largest));
  return {from_ordered(low), from_ordered(high), std::bit_cast<float>(largest)};
}

ELASTIFY_KERNEL float inverse_of(float d) {
  const float inverse = d != 0 ? 1.0F / d : 0.0F;
  return std::isinf(inverse) ? 0.0F
                             : inverse;  // d is subnormal: its f16 is zero, and so is every decoded value
}

ELASTIFY_KERNEL void store_f16(const char* type, float value, float largest, std::byte* target) {
  const uint16_t bits = half::to_f16(value);
  if ((bits & 0x7fff) >= 0x7c00) refuse(type, largest);
  std::memcpy(target, &bits, 2);
}

/// Stores the nibbles. With five bits, the word of high bits comes first.
template <int kBits>
ELASTIFY_KERNEL void store_quants(const int32_t* q, std::byte* target) {
  if constexpr (kBits == 5) {
    uint32_t high = 0;
    for (int i = 0; i < kBlock; ++i) high |= (static_cast<uint32_t>(q[i]) >> 4 & 1) << i;
    std::memcpy(target, &high, 4);
    target += 4;
  }
  uint8_t nibbles[kBlock / 2];
  for (int i = 0; i < kBlock / 2; ++i)
    nibbles[i] = static_cast<uint8_t>((q[i] & 15) | (q[i + kBlock / 2] & 15) << 4);
  std::memcpy(target, nibbles, sizeof nibbles);
}

// q4_0 and q5_0.
template <int kBits>
ELASTIFY_KERNEL void symmetric(const float* __restrict source, std::byte* __restrict target,
                               int64_t n_blocks) {
  constexpr const char* kType = kBits == 4 ? "q4_0" : "q5_0";
  constexpr int kZero = 1 << (kBits - 1), kLast = (1 << kBits) - 1;
  for (int64_t b = 0; b < n_blocks; ++b, source += kBlock, target += kBits == 4 ? 18 : 22) {
    const Range range = range_of(kType, source);
    float outermost = range.high == range.largest ? range.largest : range.low;
    if (range.high == -range.low && range.largest > 0)
      outermost =
          *std::find_if(source, source + kBlock, [&](float x) { return std::abs(x) == range.largest; });
    const float d = outermost / -static_cast<float>(kZero);
    store_f16(kType, d, range.largest, target);
    const float inverse = inverse_of(d);
    int32_t q[kBlock];
    for (int i = 0; i < kBlock; ++i)
      q[i] = std::min(kLast, static_cast<int32_t>(source[i] * inverse + (static_cast<float>(kZero) + 0.5F)));
    store_quants<kBits>(q, target + 2);
  }
}

// q4_1 and q5_1.
template <int kBits>
ELASTIFY_KERNEL void with_minimum(const float* __restrict source, std::byte* __restrict target,
                                  int64_t n_blocks) {
  constexpr const char* kType = kBits == 4 ? "q4_1" : "q5_1";
  constexpr int kLast = (1 << kBits) - 1;
  for (int64_t b = 0; b < n_blocks; ++b, source += kBlock, target += kBits == 4 ? 20 : 24) {
    const Range range = range_of(kType, source);
    float m = range.low;
    if (m == 0) m = *std::find(source, source + kBlock, 0.0F);  // of zeros of both signs, the first one
    const float d = (range.high - m) / static_cast<float>(kLast);
    store_f16(kType, d, range.largest, target);
    store_f16(kType, m, range.largest, target + 2);
    const float inverse = inverse_of(d);
    int32_t q[kBlock];
    for (int i = 0; i < kBlock; ++i)
      q[i] = std::min(kLast, static_cast<int32_t>((source[i] - m) * inverse + 0.5F));
    store_quants<kBits>(q, target + 4);
  }
}

ELASTIFY_KERNEL void eight_bits(const float* __restrict source, std::byte* __restrict target,
                                int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, source += kBlock, target += 34) {
    const float largest = range_of("q8_0", source).largest;
    const float d = largest / 127.0F;
    store_f16("q8_0", d, largest, target);
    const float inverse = inverse_of(d);
    int8_t q[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const float x = source[i] * inverse;
      // roundf() in operations that vectorise. |x| <= 127, so the truncation and the remainder are exact.
      const auto whole = static_cast<int32_t>(x);
      const float rest = x - static_cast<float>(whole);
      q[i] = static_cast<int8_t>(whole + static_cast<int32_t>(rest + rest));
    }
    std::memcpy(target + 2, q, kBlock);
  }
}

}  // namespace

void encode_q4_0(const float* source, std::byte* target, int64_t n_blocks, Isa isa) {
  run_kernel<symmetric<4>>(isa, source, target, n_blocks);
}
void encode_q4_1(const float* source, std::byte* target, int64_t n_blocks, Isa isa) {
  run_kernel<with_minimum<4>>(isa, source, target, n_blocks);
}
void encode_q5_0(const float* source, std::byte* target, int64_t n_blocks, Isa isa) {
  run_kernel<symmetric<5>>(isa, source, target, n_blocks);
}
void encode_q5_1(const float* source, std::byte* target, int64_t n_blocks, Isa isa) {
  run_kernel<with_minimum<5>>(isa, source, target, n_blocks);
}
void encode_q8_0(const float* source, std::byte* target, int64_t n_blocks, Isa isa) {
  run_kernel<eight_bits>(isa, source, target, n_blocks);
}

}  // namespace elastify::ggml
