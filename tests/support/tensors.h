#pragma once

#include <algorithm>
#include <vector>

#include "io/tensor.h"

namespace elastify::test {

inline bool same_bytes(const HostTensor& a, const HostTensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape &&
         std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin(), b.bytes.end());
}

/// All elements as float32, whatever their stored type is.
inline std::vector<float> values_of(const HostTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(n_elements(tensor.shape)));
  decode_row(tensor.dtype, tensor.bytes.data(), values.data(), static_cast<int64_t>(values.size()));
  return values;
}

/// A tensor of a type that has an encoder. Rows must be whole blocks.
inline HostTensor tensor_of(const std::vector<float>& values, Shape shape, DType dtype = DType::kF32) {
  HostTensor tensor = HostTensor::allocate(dtype, std::move(shape));
  encode_row(dtype, values.data(), tensor.writable().data(), static_cast<int64_t>(values.size()));
  return tensor;
}

}  // namespace elastify::test
