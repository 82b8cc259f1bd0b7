#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/dtype.h"

namespace elastify {

/// Outermost axis first, as in PyTorch: a linear layer's weight is [out, in]. GGUF files list the axes in
/// reverse; their reader and writer convert.
using Shape = std::vector<int64_t>;

int64_t n_elements(const Shape& shape);
/// Number of rows, the runs of the innermost axis. Quantised types encode each row block by block.
int64_t n_rows(const Shape& shape);
uint64_t n_bytes(DType dtype, const Shape& shape);
std::string to_string(const Shape& shape);  ///< "[576, 1536]"

/// Name and type of a stored tensor.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

/// The bytes of a tensor, row-major and contiguous, and the owner that keeps them alive (a file map, a
/// buffer).
struct HostTensor {
  DType dtype = DType::kF32;
  Shape shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;

  /// Makes a tensor that owns zeroed memory. writable() gives access to it.
  static HostTensor allocate(DType dtype, Shape shape);
  std::span<std::byte> writable();  ///< only for tensors made by allocate()
};

/// Converts a tensor to another type; a quantised one is decoded. A tensor that already has the type is
/// returned as it is. Rows are converted in parallel.
/// \param importance  [columns], see encode_row(); null: none
HostTensor convert(const HostTensor& tensor, DType dtype, const float* importance = nullptr);

/// Converts rows `first` to `first + n - 1` in the calling thread, into the `n` rows at `target`.
void convert_rows(const HostTensor& tensor, int64_t first, int64_t n, DType dtype, std::byte* target,
                  const float* importance = nullptr);

}  // namespace elastify
