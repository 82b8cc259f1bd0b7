#pragma once

#include "model/imatrix.h"

namespace elastify::test {

/// An importance matrix whose columns differ by orders of magnitude, so that a quantiser that uses it rounds
/// differently.
inline Imatrix uneven_imatrix(const ModelSpec& spec) {
  Imatrix imatrix;
  imatrix.datasets = {"text"};
  imatrix.chunk_count = 4;
  imatrix.chunk_size = 16;
  for (const TensorSpec& tensor : spec.tensors) {
    if (!site_of(tensor.role)) continue;
    ImatrixEntry& entry = imatrix.entries[tensor.gguf_name];
    entry.count = 64;
    for (int64_t j = 0; j < tensor.shape.back(); ++j)
      entry.sum_squares.push_back(j % 5 == 0 ? 6400.0F : 0.064F);
  }
  return imatrix;
}

}  // namespace elastify::test
