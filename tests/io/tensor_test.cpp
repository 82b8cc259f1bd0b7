#include "io/tensor.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "support/errors.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

std::vector<float> wave(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i) * 0.37F);
  return values;
}

}  // namespace

TEST_CASE("tensor: sizes of shapes, also of scalars and empty ones") {
  CHECK(n_elements({3, 5, 64}) == 960);
  CHECK(n_rows({3, 5, 64}) == 15);
  CHECK(n_bytes(DType::kQ8_0, {3, 5, 64}) == 15 * 68);
  CHECK(n_elements({}) == 1);
  CHECK(n_rows({}) == 1);
  CHECK(n_bytes(DType::kF16, {}) == 2);
  CHECK(n_elements({4, 0}) == 0);
  CHECK(n_rows({4, 0}) == 4);
  CHECK(n_bytes(DType::kF32, {4, 0}) == 0);
  CHECK(to_string(Shape{576, 1536}) == "[576, 1536]");
}

TEST_CASE("tensor: shapes that are too large or negative are refused") {
  const int64_t big = int64_t{1} << 32;
  CHECK(message_of([&] {
          n_elements({big, big});
        }) == "shape [4294967296, 4294967296] has more than 9223372036854775807 elements");
  CHECK(message_of([] { n_elements({3, -1}); }) == "shape [3, -1] has a negative dimension");
  CHECK(message_of([] { n_bytes(DType::kF32, {3, -1}); }) == "shape [3, -1] has a negative dimension");
  CHECK(message_of([&] {
          n_bytes(DType::kF32, {big, int64_t{1} << 31});
        }) == "shape [4294967296, 2147483648] of f32 has more than 18446744073709551615 bytes");
  CHECK(n_elements({big, big, 0}) == 0);
  CHECK(message_of([] {
          n_bytes(DType::kQ8_0, {2, 33});
        }) == "33 elements are not a multiple of the 32 in a block of q8_0");
}

TEST_CASE("tensor: allocated memory is zeroed, aligned and writable, a view is not writable") {
  HostTensor tensor = HostTensor::allocate(DType::kF32, {7, 5});
  CHECK(tensor.bytes.size() == 140);
  CHECK(reinterpret_cast<uintptr_t>(tensor.bytes.data()) % 64 == 0);
  for (const float value : values_of(tensor)) CHECK(value == 0.0F);
  tensor.writable()[0] = std::byte{1};
  CHECK(tensor.bytes[0] == std::byte{1});
  HostTensor view = tensor;
  CHECK_NOTHROW(view.writable());
  view.owner = nullptr;
  CHECK(message_of([&] { view.writable(); }) == "a tensor inside a mapped file cannot be written to");
}

TEST_CASE("tensor: converting to the type a tensor has gives the tensor itself") {
  const HostTensor tensor = tensor_of(wave(64), {2, 32});
  const HostTensor same = convert(tensor, DType::kF32);
  CHECK(same.bytes.data() == tensor.bytes.data());
}

TEST_CASE("tensor: converting in parallel gives the bytes of converting row by row") {
  for (const Shape& shape : {Shape{3, 32}, Shape{1000, 352}, Shape{1, 320'000}, Shape{0, 32}}) {
    const HostTensor source = tensor_of(wave(n_elements(shape)), shape);
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
      CAPTURE(to_string(shape));
      CAPTURE(info(dtype).name);
      const HostTensor encoded = convert(source, dtype);
      CHECK(same_bytes(encoded, tensor_of(wave(n_elements(shape)), shape, dtype)));
      const HostTensor decoded = convert(encoded, DType::kF32);
      CHECK(values_of(decoded) == values_of(encoded));
      CHECK(same_bytes(convert(encoded, DType::kF16), convert(decoded, DType::kF16)));
    }
  }
}

TEST_CASE("tensor: values that cannot be converted are refused, also inside parallel work") {
  const HostTensor tensor = tensor_of(wave(64), {2, 32});
  CHECK(message_of([&] { convert(tensor, DType::kQ6_K); }) ==
        "32 elements are not a multiple of the 256 in a block of q6_k");
  HostTensor cut = tensor;
  cut.bytes = cut.bytes.first(100);
  CHECK(message_of([&] { convert(cut, DType::kF16); }) ==
        "a f32 tensor of shape [2, 32] has 256 bytes, got 100");
  CHECK(message_of([&] {
          convert(tensor_of(wave(66), {2, 33}), DType::kQ8_0);
        }) == "33 elements are not a multiple of the 32 in a block of q8_0");
  std::vector<float> values = wave(400'000);
  for (size_t i = 0; i < values.size(); i += 1000) values[i] = std::numeric_limits<float>::quiet_NaN();
  CHECK(message_of([&] {
          convert(tensor_of(values, {1000, 400}, DType::kF32), DType::kQ8_0);
        }) == "400 elements are not a multiple of the 32 in a block of q8_0");
  CHECK(message_of([&] {
          convert(tensor_of(values, {12'500, 32}), DType::kQ8_0);
        }) == "q8_0: found a value that is not finite");
}
