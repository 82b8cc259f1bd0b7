#include "nn/torch_compat.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

namespace elastify::nn {

#if TORCH_VERSION_MAJOR >= 2

at::Tensor attend_differentiable(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& visible, double scale) {
  const auto for_every_head = [&](const at::Tensor& x) {
    if (x.size(1) == q.size(1)) return x;
    return x.unsqueeze(2)
        .expand({x.size(0), x.size(1), q.size(1) / x.size(1), x.size(2), x.size(3)})
        .reshape({x.size(0), q.size(1), x.size(2), x.size(3)});
  };
  // q carries the scale, because older 2.x versions have no such argument and always use 1 / sqrt(head_dim).
  const double own_scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  return at::scaled_dot_product_attention(q * (scale / own_scale), for_every_head(k), for_every_head(v),
                                          visible);
}

bool has_half_on_cpu() {
  return true;
}

#else

at::Tensor attend_differentiable(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& visible, double scale) {
  const int64_t n_batch = q.size(0), n_groups = k.size(1), n_queries = q.size(2), n_keys = k.size(2);
  if (n_groups == 0) return q;
  // The query heads of a group are stacked, so that keys and values need not be repeated.
  const int64_t heads_per_group = q.size(1) / n_groups;
  const auto stacked = (q * scale).reshape({n_batch, n_groups, heads_per_group * n_queries, q.size(3)});
  const auto scores = at::matmul(stacked, k.transpose(-1, -2))
                          .view({n_batch, n_groups, heads_per_group, n_queries, n_keys})
                          .masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
  const auto weights = at::softmax(scores, -1).view({n_batch, n_groups, heads_per_group * n_queries, n_keys});
  return at::matmul(weights, v).view(q.sizes());
}

bool has_half_on_cpu() {
  return false;
}

#endif

}  // namespace elastify::nn
