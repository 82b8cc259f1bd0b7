#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace elastify {

/// How the elements of a stored tensor are encoded. The quantised types are ggml's: a row is a sequence of
/// blocks, each of `block_size` elements in `block_bytes` bytes, and blocks do not depend on each other.
enum class DType : uint8_t { kF32, kF16, kBF16, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ4_K, kQ5_K, kQ6_K };

struct DTypeInfo {
  DType dtype;
  std::string_view name;  ///< lower case, as in flags and reports: "f16", "q8_0"
  int64_t block_size;     ///< elements
  int64_t block_bytes;
  uint32_t ggml_type;  ///< number in GGUF tensor records (enum ggml_type)
};

const DTypeInfo& info(DType dtype);
std::span<const DTypeInfo> all_dtypes();
/// \throws Error  for an unknown name; the message lists the known ones
DType dtype_from_name(std::string_view name);
inline bool is_float(DType dtype) {
  return dtype <= DType::kBF16;
}

/// Bytes that `n_elements` consecutive elements of one row take.
/// \throws Error  if `n_elements` is not a multiple of the block size
uint64_t row_bytes(DType dtype, int64_t n_elements);

/// Decodes `n` elements (a multiple of the block size) to float32. The arithmetic has the order of ggml's
/// dequantize_row_*, so that the results are the same floats.
/// Source of the block layouts: ggml/src/ggml-common.h
void decode_row(DType dtype, const std::byte* source, float* target, int64_t n);

/// Encodes `n` elements (a multiple of the block size). f16 and bf16 are rounded to nearest even. Blocks of
/// 32 get the bytes of ggml's reference encoders (ggml_quantize.h). K-quants are searched for
/// (ggml_k_quantize.h).
/// \param importance  [n], weight of each element's error, >= 0; null: none given. Only K-quants use it
/// \throws Error  for values that the type cannot hold: infinities and NaNs in a quantised type, too large a
///                scale
void encode_row(DType dtype, const float* source, std::byte* target, int64_t n,
                const float* importance = nullptr);
/// Whether encode_row() uses the importance.
inline bool uses_importance(DType dtype) {
  return dtype >= DType::kQ4_K;
}

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);

}  // namespace elastify
