#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "base/file.h"

namespace elastify::profile {

/// Tensors of one type, addressed by number, in memory or in a file. The file has one slot per number. It is
/// written with plain writes, so that everything that put() has written survives the end of the process.
class TensorSlots {
 public:
  TensorSlots() = default;  ///< in memory
  /// The file is created if it does not exist, and kept at the end.
  /// \param slot_bytes  bytes of the largest tensor
  TensorSlots(const fs::path& file, int64_t slot_bytes);
  ~TensorSlots();
  TensorSlots(const TensorSlots&) = delete;
  TensorSlots& operator=(const TensorSlots&) = delete;

  /// \throws Error  naming the file and the cause
  void put(int64_t slot, const at::Tensor& x);
  /// \param like  a tensor with the shape, type and device of the one that was put
  at::Tensor get(int64_t slot, const at::Tensor& like) const;

 private:
  fs::path path_;
  int fd_ = -1;
  int64_t slot_bytes_ = 0;
  std::vector<at::Tensor> tensors_;
};

}  // namespace elastify::profile
