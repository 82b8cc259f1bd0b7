#include "model/rope_order.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "support/tensors.h"

using namespace elastify;
using elastify::test::same_bytes;
using elastify::test::tensor_of;
using elastify::test::values_of;

namespace {

HostTensor numbered(DType dtype, Shape shape) {
  std::vector<float> values(static_cast<size_t>(n_elements(shape)));
  std::iota(values.begin(), values.end(), 0.0F);
  return tensor_of(values, std::move(shape), dtype);
}

}  // namespace

TEST_CASE("rope order: pairs half a head apart become neighbours, head by head") {
  const HostTensor bias = numbered(DType::kF32, {8});
  const HostTensor moved = reorder_rope_rows(bias, 4, RopeOrder::kHalves, RopeOrder::kInterleaved);
  CHECK(values_of(moved) == std::vector<float>{0, 2, 1, 3, 4, 6, 5, 7});
  const HostTensor head =
      reorder_rope_rows(numbered(DType::kF32, {6}), 6, RopeOrder::kInterleaved, RopeOrder::kHalves);
  CHECK(values_of(head) == std::vector<float>{0, 2, 4, 1, 3, 5});
}

TEST_CASE("rope order: there and back restores identical bytes") {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    CAPTURE(info(dtype).name);
    const HostTensor tensor = numbered(dtype, {24, 64});
    for (const RopeOrder from : {RopeOrder::kHalves, RopeOrder::kInterleaved}) {
      const RopeOrder to = from == RopeOrder::kHalves ? RopeOrder::kInterleaved : RopeOrder::kHalves;
      const HostTensor moved = reorder_rope_rows(tensor, 12, from, to);
      CHECK_FALSE(same_bytes(moved, tensor));
      CHECK(same_bytes(reorder_rope_rows(moved, 12, to, from), tensor));
    }
  }
}

TEST_CASE("rope order: quantised rows move whole") {
  const HostTensor tensor = numbered(DType::kQ8_0, {4, 32});
  const std::vector<float> before = values_of(tensor);
  const std::vector<float> after =
      values_of(reorder_rope_rows(tensor, 4, RopeOrder::kHalves, RopeOrder::kInterleaved));
  CHECK(std::equal(after.begin() + 32, after.begin() + 64, before.begin() + 64));
}

TEST_CASE("rope order: the same order is the same tensor") {
  const HostTensor tensor = numbered(DType::kF32, {8, 2});
  CHECK(reorder_rope_rows(tensor, 4, RopeOrder::kHalves, RopeOrder::kHalves).bytes.data() ==
        tensor.bytes.data());
}

TEST_CASE("rope order: what does not consist of heads is refused") {
  const auto reorder = [](const HostTensor& tensor, int64_t head_dim) {
    return reorder_rope_rows(tensor, head_dim, RopeOrder::kHalves, RopeOrder::kInterleaved);
  };
  CHECK_THROWS_WITH_AS(reorder(numbered(DType::kF32, {10, 2}), 4),
                       "rotary pairs: a tensor of shape [10, 2] does not consist of heads of 4 rows", Error);
  CHECK_THROWS_WITH_AS(reorder(numbered(DType::kF32, {9}), 3), "rotary pairs need an even head_dim, got 3",
                       Error);
  CHECK_THROWS_WITH_AS(reorder(numbered(DType::kF32, {8}), 0), "rotary pairs need an even head_dim, got 0",
                       Error);
  CHECK_THROWS_WITH_AS(reorder(numbered(DType::kQ8_0, {32}), 4),
                       "rotary pairs: elements of a q8_0 vector cannot be moved", Error);
}
