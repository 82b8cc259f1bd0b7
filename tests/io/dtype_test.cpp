#include "io/dtype.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/bytes.h"
#include "support/errors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

// A record of tests/data/block_fixtures.bin, whose script describes it.
struct Fixture {
  std::string action;
  DType dtype;
  std::string encoded;
  std::vector<float> values;
};

std::vector<Fixture> fixtures() {
  const std::string file = read_bytes(fs::path(ELASTIFY_SOURCE_DIR) / "tests/data/block_fixtures.bin");
  std::vector<Fixture> result;
  for (size_t at = 0; at < file.size();) {
    const std::string label = file.substr(at, 16).c_str();
    uint32_t n_bytes = 0, n_values = 0;
    std::memcpy(&n_bytes, file.data() + at + 16, 4);
    std::memcpy(&n_values, file.data() + at + 20, 4);
    at += 24;
    const size_t space = label.find(' ');
    Fixture fixture{label.substr(0, space), dtype_from_name(label.substr(space + 1)),
                    file.substr(at, n_bytes), std::vector<float>(n_values)};
    std::memcpy(fixture.values.data(), file.data() + at + n_bytes, n_values * sizeof(float));
    at += n_bytes + n_values * sizeof(float);
    result.push_back(std::move(fixture));
  }
  return result;
}

// The value of a half, by IEEE 754's definition.
double value_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

}  // namespace

TEST_CASE("dtype: every quantised type decodes to the floats of gguf-py, bit for bit") {
  size_t n_types = 0;
  for (const Fixture& fixture : fixtures()) {
    if (fixture.action != "decode") continue;
    ++n_types;
    CAPTURE(info(fixture.dtype).name);
    const auto n = static_cast<int64_t>(fixture.values.size());
    REQUIRE(row_bytes(fixture.dtype, n) == fixture.encoded.size());
    std::vector<float> decoded(fixture.values.size());
    decode_row(fixture.dtype, as_bytes(fixture.encoded).data(), decoded.data(), n);
    for (size_t i = 0; i < decoded.size(); ++i) {
      CAPTURE(i);
      REQUIRE(std::bit_cast<uint32_t>(decoded[i]) == std::bit_cast<uint32_t>(fixture.values[i]));
    }
  }
  CHECK(n_types == 8);
}

TEST_CASE("dtype: f16, bf16 and q8_0 encode to the bytes of gguf-py") {
  size_t n_types = 0;
  for (const Fixture& fixture : fixtures()) {
    if (fixture.action != "encode") continue;
    ++n_types;
    CAPTURE(info(fixture.dtype).name);
    const auto n = static_cast<int64_t>(fixture.values.size());
    std::string encoded(row_bytes(fixture.dtype, n), '\0');
    encode_row(fixture.dtype, fixture.values.data(), reinterpret_cast<std::byte*>(encoded.data()), n);
    REQUIRE(encoded.size() == fixture.encoded.size());
    for (size_t i = 0; i < encoded.size(); ++i) {
      CAPTURE(i);
      REQUIRE(int{encoded[i]} == int{fixture.encoded[i]});
    }
  }
  CHECK(n_types == 3);
}

TEST_CASE("dtype: every half converts to the number it stands for, and back to itself") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f16_to_f32(half);
    CAPTURE(bits);
    if ((half & 0x7fff) > 0x7c00) {
      REQUIRE(std::isnan(value));
      REQUIRE(std::isnan(f16_to_f32(f32_to_f16(value))));
      continue;
    }
    if ((half & 0x7fff) == 0x7c00)
      REQUIRE(std::isinf(value));
    else
      REQUIRE(double{value} == value_of_half(half));
    REQUIRE(std::signbit(value) == ((half & 0x8000) != 0));
    REQUIRE(f32_to_f16(value) == half);
  }
}

TEST_CASE("dtype: floats between two halves round to the nearer one, and ties to even") {
  for (uint16_t half = 0; half < 0x7bff; ++half) {
    const float low = f16_to_f32(half), high = f16_to_f32(static_cast<uint16_t>(half + 1));
    const float middle = (low + high) / 2;
    CAPTURE(half);
    REQUIRE(f32_to_f16(middle) == (half % 2 == 0 ? half : half + 1));
    REQUIRE(f32_to_f16(std::nextafter(middle, low)) == half);
    REQUIRE(f32_to_f16(-std::nextafter(middle, high)) == (half + 1) + 0x8000);
  }
  CHECK(f32_to_f16(65519.996F) == 0x7bff);
  CHECK(f32_to_f16(65520.0F) == 0x7c00);
  CHECK(f32_to_f16(1e30F) == 0x7c00);
  CHECK(f32_to_f16(-std::numeric_limits<float>::infinity()) == 0xfc00);
  CHECK(f32_to_f16(std::numeric_limits<float>::denorm_min()) == 0);
}

TEST_CASE("dtype: bf16 rounds to nearest even and keeps infinities and NaNs") {
  CHECK(bf16_to_f32(0x3f80) == 1.0F);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808000U)) == 0x3f80);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f818000U)) == 0x3f82);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808001U)) == 0x3f81);
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(f32_to_bf16(-std::numeric_limits<float>::infinity()) == 0xff80);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001U)))));
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0xffffffffU)))));
}

TEST_CASE("dtype: conversions do not need aligned bytes") {
  const std::vector<float> values(256, 1.5F);
  for (const DTypeInfo& type : all_dtypes()) {
    std::vector<std::byte> memory(row_bytes(type.dtype, 256) + 1);
    encode_row(type.dtype, values.data(), memory.data() + 1, 256);
    std::vector<float> decoded(256);
    decode_row(type.dtype, memory.data() + 1, decoded.data(), 256);
    for (const float value : decoded) CHECK(value == doctest::Approx(1.5).epsilon(0.01));
  }
}

TEST_CASE("dtype: q8_0 refuses values that it cannot hold") {
  std::vector<float> values(32, 1.0F);
  std::vector<std::byte> target(34);
  const auto encode = [&] { encode_row(DType::kQ8_0, values.data(), target.data(), 32); };
  values[31] = std::numeric_limits<float>::quiet_NaN();
  CHECK(message_of(encode) == "q8_0: found a value that is not finite");
  values[31] = -std::numeric_limits<float>::infinity();
  CHECK(message_of(encode) == "q8_0: found a value that is not finite");
  values[31] = -1e7F;
  CHECK(message_of(encode) == "q8_0: the largest value is 10000000, above what an f16 scale can hold");
}

TEST_CASE("dtype: q8_0 encodes values too small for its scale as zeros") {
  const std::vector<float> values(32, std::numeric_limits<float>::denorm_min());
  std::vector<std::byte> encoded(34);
  encode_row(DType::kQ8_0, values.data(), encoded.data(), 32);
  std::vector<float> decoded(32, 1.0F);
  decode_row(DType::kQ8_0, encoded.data(), decoded.data(), 32);
  CHECK(decoded == std::vector<float>(32, 0.0F));
}

TEST_CASE("dtype: names and block sizes agree with each other") {
  for (const DTypeInfo& type : all_dtypes()) {
    CHECK(dtype_from_name(type.name) == type.dtype);
    CHECK(row_bytes(type.dtype, 3 * type.block_size) == static_cast<uint64_t>(3 * type.block_bytes));
    CHECK(row_bytes(type.dtype, 0) == 0);
  }
  CHECK(message_of([] { dtype_from_name("iq2_xs"); }) ==
        "unknown type iq2_xs; known are f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k");
  CHECK(message_of([] { row_bytes(DType::kQ4_K, 576); }) ==
        "576 elements are not a multiple of the 256 in a block of q4_k");
  CHECK(message_of([] { row_bytes(DType::kF32, -1); }) ==
        "-1 elements are not a multiple of the 1 in a block of f32");
  CHECK(message_of([] { row_bytes(DType::kF32, std::numeric_limits<int64_t>::max()); }) ==
        "a row of 9223372036854775807 f32 elements is too large");
}
