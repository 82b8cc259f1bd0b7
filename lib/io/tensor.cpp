#include "io/tensor.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <vector>

#include "base/error.h"

namespace elastify {
namespace {

constexpr uintptr_t kAlignment = 64;
// Elements converted at a time: a multiple of every block size, and small enough to stay in the cache.
constexpr int64_t kChunk = 8192;

// The type of this deleter marks memory from allocate(). Only such memory may be written to.
struct FreeAllocated {
  void* start;
  void operator()(const void*) const { std::free(start); }
};

int64_t product(std::span<const int64_t> dims, const Shape& shape) {
  int64_t result = 1;
  bool empty = false, overflow = false;
  for (const int64_t dim : dims) {
    if (dim < 0) fail("shape {} has a negative dimension", to_string(shape));
    empty |= dim == 0;
    overflow |= __builtin_mul_overflow(result, dim, &result);
  }
  if (empty) return 0;
  if (overflow)
    fail("shape {} has more than {} elements", to_string(shape), std::numeric_limits<int64_t>::max());
  return result;
}

/// Converts elements begin .. begin + n - 1 of the tensor, seen as one long row.
void convert_chunk(const HostTensor& from, DType dtype, std::byte* target, int64_t begin, int64_t n,
                   const float* importance) {
  const std::byte* source = from.bytes.data() + row_bytes(from.dtype, begin);
  if (dtype == DType::kF32) {
    decode_row(from.dtype, source, reinterpret_cast<float*>(target), n);
    return;
  }
  std::array<float, kChunk> values;
  decode_row(from.dtype, source, values.data(), n);
  encode_row(dtype, values.data(), target, n, importance);
}

void require_whole(const HostTensor& tensor) {
  const uint64_t expected = n_bytes(tensor.dtype, tensor.shape);
  if (tensor.bytes.size() != expected)
    fail("a {} tensor of shape {} has {} bytes, got {}", info(tensor.dtype).name, to_string(tensor.shape),
         expected, tensor.bytes.size());
}

}  // namespace

int64_t n_elements(const Shape& shape) {
  return product(shape, shape);
}

int64_t n_rows(const Shape& shape) {
  if (shape.empty()) return 1;
  return product(std::span(shape).first(shape.size() - 1), shape);
}

uint64_t n_bytes(DType dtype, const Shape& shape) {
  const int64_t inner = shape.empty() ? 1 : shape.back();
  if (inner < 0) fail("shape {} has a negative dimension", to_string(shape));
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(row_bytes(dtype, inner), static_cast<uint64_t>(n_rows(shape)), &bytes))
    fail("shape {} of {} has more than {} bytes", to_string(shape), info(dtype).name,
         std::numeric_limits<uint64_t>::max());
  return bytes;
}

std::string to_string(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

HostTensor HostTensor::allocate(DType dtype, Shape shape) {
  const uint64_t size = elastify::n_bytes(dtype, shape);
  if (size > std::numeric_limits<size_t>::max() / 2) throw std::bad_alloc();
  // calloc takes large blocks from the kernel already zeroed, so that they are touched only once.
  void* start = std::calloc(size + kAlignment, 1);
  if (start == nullptr) throw std::bad_alloc();
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  auto* data = static_cast<std::byte*>(start) + (kAlignment - address % kAlignment) % kAlignment;
  return {dtype, std::move(shape), {data, size}, std::shared_ptr<const void>(data, FreeAllocated{start})};
}

std::span<std::byte> HostTensor::writable() {
  if (std::get_deleter<FreeAllocated>(owner) == nullptr)
    fail("a tensor inside a mapped file cannot be written to");
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

HostTensor convert(const HostTensor& tensor, DType dtype, const float* importance) {
  if (tensor.dtype == dtype) return tensor;
  require_whole(tensor);
  HostTensor result = HostTensor::allocate(dtype, tensor.shape);
  std::byte* target = result.writable().data();
  // Rows are whole numbers of blocks in both types and lie one after the other, so the tensor is one long
  // row. Cutting that row evenly suits one long row as well as many short ones. Importance starts over with
  // every row; with it, chunks are cut inside rows.
  const bool weighed = importance != nullptr && uses_importance(dtype);
  const int64_t n = n_elements(tensor.shape), row = weighed ? tensor.shape.back() : n;
  const int64_t per_row = row / kChunk + (row % kChunk != 0 ? 1 : 0);
  const int64_t n_chunks = n == 0 ? 0 : n / row * per_row;
  std::exception_ptr failure;
#pragma omp parallel for schedule(static) if (n > 16 * kChunk)
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    try {
      const int64_t column = chunk % per_row * kChunk, begin = chunk / per_row * row + column;
      convert_chunk(tensor, dtype, target + row_bytes(dtype, begin), begin, std::min(kChunk, row - column),
                    weighed ? importance + column : nullptr);
    } catch (...) {
#pragma omp critical(elastify_convert)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
  return result;
}

void convert_rows(const HostTensor& tensor, int64_t first, int64_t n, DType dtype, std::byte* target,
                  const float* importance) {
  require_whole(tensor);
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (tensor.dtype == dtype) {
    const uint64_t bytes = row_bytes(dtype, row);
    if (n > 0)
      std::memcpy(target, tensor.bytes.data() + static_cast<uint64_t>(first) * bytes,
                  static_cast<uint64_t>(n) * bytes);
    return;
  }
  const bool weighed = importance != nullptr && uses_importance(dtype);
  const int64_t run = weighed ? row : n * row;  // elements in one piece
  for (int64_t done = 0; done < n * row; done += run)
    for (int64_t at = 0; at < run; at += kChunk)
      convert_chunk(tensor, dtype, target + row_bytes(dtype, done + at), first * row + done + at,
                    std::min(kChunk, run - at), weighed ? importance + at : nullptr);
}

}  // namespace elastify
