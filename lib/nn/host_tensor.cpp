#include "nn/host_tensor.h"

#include <torch/torch.h>

#include <cstring>

#include "base/error.h"

namespace elastify::nn {
namespace {

c10::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    default:
      fail("{} has no tensor type", info(dtype).name);
  }
}

}  // namespace

at::Tensor as_tensor(const HostTensor& source) {
  const auto type = scalar_type(source.dtype);
  void* data = const_cast<std::byte*>(source.bytes.data());
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(type) == 0)
    return torch::from_blob(
        data, source.shape, [owner = source.owner](void*) mutable { owner.reset(); }, type);
  at::Tensor copy = at::empty(source.shape, type);
  std::memcpy(copy.data_ptr(), data, source.bytes.size());
  return copy;
}

}  // namespace elastify::nn
