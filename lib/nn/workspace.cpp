#include "nn/workspace.h"

#include <torch/torch.h>

namespace elastify::nn {

at::Tensor Workspace::get(Slot slot, int64_t rows, int64_t columns, const at::TensorOptions& options) {
  at::Tensor& storage = storage_[static_cast<size_t>(slot)];
  if (!storage.defined() || storage.numel() < rows * columns) storage = at::empty({rows * columns}, options);
  return storage.narrow(0, 0, rows * columns).view({rows, columns});
}

}  // namespace elastify::nn
