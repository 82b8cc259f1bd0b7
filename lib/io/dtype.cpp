#include "io/dtype.h"

#include <array>
#include <cstring>
#include <string>

#include "base/error.h"
#include "io/ggml_blocks.h"
#include "io/ggml_k_quantize.h"
#include "io/ggml_quantize.h"
#include "io/half.h"
#include "io/isa.h"

namespace elastify {
namespace {

constexpr std::array<DTypeInfo, 11> kTypes = {{
    {DType::kF32, "f32", 1, 4, 0},
    {DType::kF16, "f16", 1, 2, 1},
    {DType::kBF16, "bf16", 1, 2, 30},
    {DType::kQ4_0, "q4_0", 32, 18, 2},
    {DType::kQ4_1, "q4_1", 32, 20, 3},
    {DType::kQ5_0, "q5_0", 32, 22, 6},
    {DType::kQ5_1, "q5_1", 32, 24, 7},
    {DType::kQ8_0, "q8_0", 32, 34, 8},
    {DType::kQ4_K, "q4_k", 256, 144, 12},
    {DType::kQ5_K, "q5_k", 256, 176, 13},
    {DType::kQ6_K, "q6_k", 256, 210, 14},
}};

constexpr bool in_enum_order() {
  for (size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].dtype != static_cast<DType>(i)) return false;
  return true;
}
static_assert(in_enum_order());

// Loads and stores go through memcpy, because tensor data of safetensors files may be unaligned.
template <float (*kConvert)(uint16_t)>
ELASTIFY_KERNEL void decode_half(const std::byte* __restrict source, float* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, 2);
    target[i] = kConvert(bits);
  }
}

template <uint16_t (*kConvert)(float)>
ELASTIFY_KERNEL void encode_half(const float* __restrict source, std::byte* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = kConvert(source[i]);
    std::memcpy(target + 2 * i, &bits, 2);
  }
}

int64_t n_blocks(DType dtype, int64_t n) {
  const DTypeInfo& type = info(dtype);
  if (n < 0 || n % type.block_size != 0)
    fail("{} elements are not a multiple of the {} in a block of {}", n, type.block_size, type.name);
  return n / type.block_size;
}

}  // namespace

const DTypeInfo& info(DType dtype) {
  return kTypes.at(static_cast<size_t>(dtype));
}

std::span<const DTypeInfo> all_dtypes() {
  return kTypes;
}

DType dtype_from_name(std::string_view name) {
  std::string known;
  for (const DTypeInfo& type : kTypes) {
    if (type.name == name) return type.dtype;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", type.name);
  }
  fail("unknown type {}; known are {}", name, known);
}

uint64_t row_bytes(DType dtype, int64_t n_elements) {
  const auto blocks = static_cast<uint64_t>(n_blocks(dtype, n_elements));
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(blocks, static_cast<uint64_t>(info(dtype).block_bytes), &bytes))
    fail("a row of {} {} elements is too large", n_elements, info(dtype).name);
  return bytes;
}

void decode_row(DType dtype, const std::byte* source, float* target, int64_t n) {
  const int64_t blocks = n_blocks(dtype, n);
  if (n == 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(target, source, static_cast<size_t>(n) * 4);
      return;
    case DType::kF16:
      return run_kernel<decode_half<half::from_f16>>(best_isa(), source, target, n);
    case DType::kBF16:
      return run_kernel<decode_half<half::from_bf16>>(best_isa(), source, target, n);
    case DType::kQ4_0:
      return ggml::decode_q4_0(source, target, blocks);
    case DType::kQ4_1:
      return ggml::decode_q4_1(source, target, blocks);
    case DType::kQ5_0:
      return ggml::decode_q5_0(source, target, blocks);
    case DType::kQ5_1:
      return ggml::decode_q5_1(source, target, blocks);
    case DType::kQ8_0:
      return ggml::decode_q8_0(source, target, blocks);
    case DType::kQ4_K:
      return ggml::decode_q4_k(source, target, blocks);
    case DType::kQ5_K:
      return ggml::decode_q5_k(source, target, blocks);
    case DType::kQ6_K:
      return ggml::decode_q6_k(source, target, blocks);
  }
}

void encode_row(DType dtype, const float* source, std::byte* target, int64_t n, const float* importance) {
  const int64_t blocks = n_blocks(dtype, n);
  if (n == 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(target, source, static_cast<size_t>(n) * 4);
      return;
    case DType::kF16:
      return run_kernel<encode_half<half::to_f16>>(best_isa(), source, target, n);
    case DType::kBF16:
      return run_kernel<encode_half<half::to_bf16>>(best_isa(), source, target, n);
    case DType::kQ4_0:
      return ggml::encode_q4_0(source, target, blocks);
    case DType::kQ4_1:
      return ggml::encode_q4_1(source, target, blocks);
    case DType::kQ5_0:
      return ggml::encode_q5_0(source, target, blocks);
    case DType::kQ5_1:
      return ggml::encode_q5_1(source, target, blocks);
    case DType::kQ8_0:
      return ggml::encode_q8_0(source, target, blocks);
    case DType::kQ4_K:
      return ggml::encode_q4_k(source, target, blocks, importance);
    case DType::kQ5_K:
      return ggml::encode_q5_k(source, target, blocks, importance);
    case DType::kQ6_K:
      return ggml::encode_q6_k(source, target, blocks, importance);
  }
}

float f16_to_f32(uint16_t bits) {
  return half::from_f16(bits);
}
uint16_t f32_to_f16(float value) {
  return half::to_f16(value);
}
float bf16_to_f32(uint16_t bits) {
  return half::from_bf16(bits);
}
uint16_t f32_to_bf16(float value) {
  return half::to_bf16(value);
}

}  // namespace elastify
