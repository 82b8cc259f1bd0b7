#pragma once

#include "io/tensor.h"
#include "model/families/families.h"

namespace elastify {

/// Whether the order of this tensor's rows depends on the layout of rotary pairs: q, k and their biases.
bool is_rotary(Role role);

/// Reorders the rows of a Q or K weight, or the elements of its bias, between layouts of rotary pairs. Head
/// by head: halves (x0 .. xh-1 | y0 .. yh-1) <-> interleaved (x0 y0 x1 y1 ..), h = head_dim / 2. Works on any
/// stored type, since rows move whole. Returns the tensor itself if `from == to`.
/// \throws Error  if the leading axis is not a multiple of head_dim, or head_dim is odd
HostTensor reorder_rope_rows(const HostTensor& tensor, int64_t head_dim, RopeOrder from, RopeOrder to);

}  // namespace elastify
