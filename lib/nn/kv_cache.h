#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace elastify::nn {

/// Keys and values of the tokens so far, for generation. `length` grows once all layers have run.
struct KvCache {
  std::vector<at::Tensor> keys, values;  ///< per layer, [B, K, T, head_dim]; undefined without attention
  int64_t length = 0;                    ///< tokens that all layers have processed

  /// Appends a layer's keys and values [B, K, T, head_dim] after the first `length` tokens.
  /// \returns all of them so far, [B, K, length + T, head_dim]
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
};

}  // namespace elastify::nn
