#include "model/rope_order.h"

#include <cstring>

#include "base/error.h"

namespace elastify {

bool is_rotary(Role role) {
  return role == Role::kQuery || role == Role::kKey || role == Role::kQueryBias || role == Role::kKeyBias;
}

HostTensor reorder_rope_rows(const HostTensor& tensor, int64_t head_dim, RopeOrder from, RopeOrder to) {
  if (from == to) return tensor;
  if (head_dim < 2 || head_dim % 2 != 0) fail("rotary pairs need an even head_dim, got {}", head_dim);
  if (tensor.shape.empty() || tensor.shape[0] < 1 || tensor.shape[0] % head_dim != 0)
    fail("rotary pairs: a tensor of shape {} does not consist of heads of {} rows", to_string(tensor.shape),
         head_dim);
  if (tensor.shape.size() == 1 && !is_float(tensor.dtype))
    fail("rotary pairs: elements of a {} vector cannot be moved", info(tensor.dtype).name);

  HostTensor moved = HostTensor::allocate(tensor.dtype, tensor.shape);
  const std::span<std::byte> target = moved.writable();
  if (target.size() != tensor.bytes.size())
    fail("rotary pairs: expected {} bytes, got {}", target.size(), tensor.bytes.size());
  const int64_t n_rows = tensor.shape[0];
  const int64_t half = head_dim / 2;
  const auto row = static_cast<size_t>(target.size() / static_cast<uint64_t>(n_rows));
  if (row == 0) return moved;
  for (int64_t first = 0; first < n_rows; first += head_dim) {
    for (int64_t j = 0; j < head_dim; ++j) {
      const int64_t in_halves = (j % 2) * half + j / 2;
      const int64_t source_row = first + (from == RopeOrder::kHalves ? in_halves : j);
      const int64_t target_row = first + (from == RopeOrder::kHalves ? j : in_halves);
      std::memcpy(target.data() + static_cast<size_t>(target_row) * row,
                  tensor.bytes.data() + static_cast<size_t>(source_row) * row, row);
    }
  }
  return moved;
}

}  // namespace elastify
