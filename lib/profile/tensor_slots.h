#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "base/file.h"

namespace elastify::profile {

/// Tensors of one type by number, in memory or in a file. The file has one slot per number and is
/// written with plain writes, so that what put() has returned from survives the end of the process.
class TensorSlots {
 public:
  TensorSlots() = default;  ///< in memory
  /// \param slot_bytes  of the largest tensor. The file is made if need be, and kept at the end
  TensorSlots(const fs::path& file, int64_t slot_bytes);
  ~TensorSlots();
  TensorSlots(const TensorSlots&) = delete;
  TensorSlots& operator=(const TensorSlots&) = delete;

  /// \throws Error  naming the file and the cause
  void put(int64_t slot, const at::Tensor& x);
  /// \param like  shape, type and device of what was put
  at::Tensor get(int64_t slot, const at::Tensor& like) const;

 private:
  fs::path path_;
  int fd_ = -1;
  int64_t slot_bytes_ = 0;
  std::vector<at::Tensor> tensors_;
};

}  // namespace elastify::profile
