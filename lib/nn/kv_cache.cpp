#include "nn/kv_cache.h"

#include <torch/torch.h>

#include <algorithm>

namespace elastify::nn {

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& k, const at::Tensor& v) {
  const auto l = static_cast<size_t>(layer);
  const int64_t needed = length + k.size(2);
  keys.resize(std::max(keys.size(), l + 1));
  values.resize(std::max(values.size(), l + 1));
  const auto put = [&](at::Tensor& store, const at::Tensor& part) {
    if (!store.defined() || store.size(2) < needed) {
      // Doubling the length copies each token a constant number of times on average.
      at::Tensor larger =
          at::empty({part.size(0), part.size(1), std::max(needed, 2 * length), part.size(3)}, part.options());
      if (length > 0) larger.narrow(2, 0, length).copy_(store.narrow(2, 0, length));
      store = larger;
    }
    store.narrow(2, length, part.size(2)).copy_(part);
    return store.narrow(2, 0, needed);
  };
  at::Tensor all_keys = put(keys[l], k), all_values = put(values[l], v);
  return {all_keys, all_values};
}

}  // namespace elastify::nn
