#include "nn/attention.h"

#include <torch/torch.h>

#include <algorithm>

#include "nn/kernels.h"
#include "nn/torch_compat.h"

namespace elastify::nn {
namespace {

constexpr int64_t kQueryBlock = 128;

/// Attention of some queries, as rows of a matrix.
/// \param keys, values  [n_keys, head_dim], those that at least one of the queries sees
/// \param visible       which of these keys row i sees
/// \param scratch       float [>= rows * n_keys]
template <typename Visible>
void attend_rows(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, Visible visible,
                 double scale, const at::Tensor& scratch, at::Tensor out) {
  const int64_t n_rows = queries.size(0), n_keys = keys.size(0);
  auto scores = scratch.narrow(0, 0, n_rows * n_keys).view({n_rows, n_keys});
  at::mm_out(scores, queries, keys.t());
  for (int64_t i = 0; i < n_rows; ++i) {
    const KeyRange range = visible(i);
    softmax_row(scores.data_ptr<float>() + i * n_keys, n_keys, range.first, range.last,
                static_cast<float>(scale));
  }
  at::mm_out(out, scores, values);
}

/// One new token per sequence: the heads of a group see the same keys, and can be the rows of one product.
void attend_one_token(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                      double scale, const at::Tensor& out) {
  const int64_t n_groups = k.size(1), heads_per_group = q.size(1) / n_groups;
  const KeyRange range = visible_keys(k.size(2) - 1, window);
  const int64_t n_keys = range.last - range.first;
  const auto seen = [&](int64_t) { return KeyRange{0, n_keys}; };
  at::parallel_for(0, q.size(0) * n_groups, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain_tensors;
    const at::Tensor scratch = at::empty({heads_per_group * n_keys}, q.options());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / n_groups, group = i % n_groups;
      const auto heads_of = [&](const at::Tensor& x) {
        return x[batch].narrow(0, group * heads_per_group, heads_per_group).select(1, 0);
      };
      attend_rows(heads_of(q), k[batch][group].narrow(0, range.first, n_keys),
                  v[batch][group].narrow(0, range.first, n_keys), seen, scale, scratch, heads_of(out));
    }
  });
}

}  // namespace

void attend_blocked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                    double scale, const at::Tensor& out) {
  if (q.numel() == 0) return;
  if (q.size(2) == 1) return attend_one_token(q, k, v, window, scale, out);
  const int64_t n_heads = q.size(1), heads_per_group = n_heads / k.size(1);
  const int64_t n_queries = q.size(2), past = k.size(2) - n_queries;
  const int64_t n_blocks = (n_queries + kQueryBlock - 1) / kQueryBlock;
  at::parallel_for(0, q.size(0) * n_heads * n_blocks, 1, [&](int64_t begin, int64_t end) {
    // Worker threads know nothing of the caller's inference or gradient mode.
    const at::AutoDispatchBelowADInplaceOrView plain_tensors;
    const at::Tensor scratch = at::empty({std::min(kQueryBlock, n_queries) * k.size(2)}, q.options());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / n_blocks / n_heads, head = i / n_blocks % n_heads;
      const int64_t first = i % n_blocks * kQueryBlock, n_rows = std::min(kQueryBlock, n_queries - first);
      const int64_t first_key = visible_keys(past + first, window).first;
      const int64_t n_keys = past + first + n_rows - first_key;
      const auto seen = [&](int64_t row) {
        const KeyRange range = visible_keys(past + first + row, window);
        return KeyRange{range.first - first_key, range.last - first_key};
      };
      attend_rows(q[batch][head].narrow(0, first, n_rows),
                  k[batch][head / heads_per_group].narrow(0, first_key, n_keys),
                  v[batch][head / heads_per_group].narrow(0, first_key, n_keys), seen, scale, scratch,
                  out[batch][head].narrow(0, first, n_rows));
    }
  });
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                  double scale) {
  const int64_t n_queries = q.size(2), n_keys = k.size(2);
  const auto options = at::TensorOptions().dtype(at::kLong).device(q.device());
  const auto distance =
      at::arange(n_keys - n_queries, n_keys, options).unsqueeze(1) - at::arange(n_keys, options);
  auto visible = distance >= 0;
  if (window > 0) visible = visible.logical_and(distance < window);
  return attend_differentiable(q, k, v, visible, scale);
}

}  // namespace elastify::nn
