#pragma once

#include <bit>
#include <cstdint>

// Conversions of the 16-bit float types, without branches so that loops over them vectorise.

namespace elastify::half {

// All ones where `condition` holds. Every vector unit can select by masks of signed comparisons.
inline int32_t mask(bool condition) {
  return -static_cast<int32_t>(condition);
}

inline float from_f16(uint16_t half) {
  const uint32_t sign = (uint32_t{half} & 0x8000) << 16;
  const int32_t magnitude = half & 0x7fff;
  const int32_t normal = (magnitude << 13) + (112 << 23);
  // 0.5 has the spacing 2^-24 of the subnormal numbers, so this difference is exact.
  const auto subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(magnitude | 0x3f000000) - 0.5f);
  const int32_t is_subnormal = mask(magnitude < 0x0400);
  const int32_t is_special = mask(magnitude > 0x7bff);  // infinities and NaNs
  const int32_t bits = (subnormal & is_subnormal) | (normal & ~is_subnormal) | (0x7f800000 & is_special);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) | sign);
}

inline uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<int32_t>(bits >> 16 & 0x8000);
  const auto magnitude = static_cast<int32_t>(bits & 0x7fffffff);
  const int32_t is_subnormal = mask(magnitude < 0x38800000);
  const int32_t is_nan = mask(magnitude > 0x7f800000);
  // Clamped to the first number that rounds to infinity, because larger ones would come out above infinity.
  const int32_t over = mask(magnitude > 0x47800000);
  const int32_t clamped = (0x47800000 & over) | (magnitude & ~over);
  const int32_t normal = (clamped - (112 << 23) + 0xfff + (clamped >> 13 & 1)) >> 13;
  // The addition rounds to a multiple of 2^-24, ties to even.
  const int32_t small = magnitude & is_subnormal;
  const int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(small) + 0.5f) - 0x3f000000;
  const int32_t nan = (0x0200 | (magnitude >> 13 & 0x3ff)) & is_nan;
  return static_cast<uint16_t>(sign | (subnormal & is_subnormal) | (normal & ~is_subnormal) | nan);
}

inline float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

inline uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto is_nan = static_cast<uint32_t>(mask(static_cast<int32_t>(bits & 0x7fffffff) > 0x7f800000));
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((rounded & ~is_nan) | (((bits >> 16) | 0x40) & is_nan));
}

}  // namespace elastify::half
