#include "nn/token_ids.h"

#include <torch/torch.h>

#include <algorithm>

#include "base/error.h"

namespace elastify::nn {

at::Tensor stack_ids(std::span<const std::vector<int32_t>> sequences) {
  const size_t length = sequences.empty() ? 0 : sequences[0].size();
  at::Tensor ids = at::empty({static_cast<int64_t>(sequences.size()), static_cast<int64_t>(length)},
                             at::TensorOptions().dtype(at::kLong));
  int64_t* target = ids.data_ptr<int64_t>();
  for (const auto& sequence : sequences) {
    if (sequence.size() != length)
      fail("all sequences of a batch: expected {} tokens, got {}", length, sequence.size());
    target = std::copy(sequence.begin(), sequence.end(), target);
  }
  return ids;
}

}  // namespace elastify::nn
