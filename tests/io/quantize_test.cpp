// Tests the encoders of quantised blocks against their definition. tests/interop/quantize_test.cpp compares
// them with ggml.

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "io/dtype.h"
#include "io/ggml_k_quantize.h"
#include "io/ggml_quantize.h"
#include "io/tensor.h"
#include "support/errors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

using Bytes = std::vector<std::byte>;
constexpr DType kQuantised[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

std::vector<float> noise(size_t n, uint32_t seed, float scale = 0.05F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random) * scale;
  return values;
}

/// Noise, outliers, constants, zeros of both signs, ties for the largest, numbers next to the limits of f16.
std::vector<float> awkward() {
  std::vector<float> values = noise(256 * 16, 3);
  for (size_t i = 0; i < 256; ++i) {
    values[256 + i] = 0;
    values[512 + i] = i % 3 == 0 ? -0.0F : 0.0F;
    values[768 + i] = -0.0F;
    values[1024 + i] = 0.25F;
    values[1280 + i] = -0.25F;
    values[1536 + i] = i % 2 == 0 ? 1.0F : -1.0F;
    values[1792 + i] = i % 2 == 0 ? -1.0F : 1.0F;
    values[2048 + i] *= 1e-7F;
    values[2304 + i] *= 1e-20F;
    values[2560 + i] = i == 77 ? 30000.0F : values[2560 + i];
    values[2816 + i] = std::abs(values[2816 + i]) + 1;
    values[3072 + i] = -std::abs(values[3072 + i]);
    values[3328 + i] = std::numeric_limits<float>::denorm_min();
    values[3584 + i] = i % 32 == 5 ? -2.0F : i % 32 == 9 ? 2.0F : values[3584 + i];
  }
  return values;
}

Bytes encoded(DType type, const std::vector<float>& values, const float* importance = nullptr) {
  Bytes bytes(row_bytes(type, static_cast<int64_t>(values.size())));
  encode_row(type, values.data(), bytes.data(), static_cast<int64_t>(values.size()), importance);
  return bytes;
}

std::vector<float> decoded(DType type, const Bytes& bytes, size_t n) {
  std::vector<float> values(n);
  decode_row(type, bytes.data(), values.data(), static_cast<int64_t>(n));
  return values;
}

double error_of(
    const std::vector<float>& x, const std::vector<float>& y,
    const std::function<double(size_t)>& weight = [](size_t) { return 1.0; }) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += weight(i) * std::pow(double{x[i]} - double{y[i]}, 2);
  return sum;
}

/// The definition of ggml's q4_0, q4_1, q5_0 and q5_1, one element at a time.
Bytes by_definition(DType type, const std::vector<float>& values) {
  const bool five = type == DType::kQ5_0 || type == DType::kQ5_1;
  const bool has_minimum = type == DType::kQ4_1 || type == DType::kQ5_1;
  const int last = five ? 31 : 15;
  Bytes bytes;
  const auto put = [&](const auto& value) {
    const auto* raw = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), raw, raw + sizeof value);
  };
  for (size_t start = 0; start < values.size(); start += 32) {
    const float* x = values.data() + start;
    float outermost = 0, low = x[0], high = x[0];
    for (int i = 0; i < 32; ++i) {
      if (std::abs(x[i]) > std::abs(outermost)) outermost = x[i];
      if (x[i] < low) low = x[i];
      if (x[i] > high) high = x[i];
    }
    const float d =
        has_minimum ? (high - low) / static_cast<float>(last) : outermost / -static_cast<float>(last / 2 + 1);
    const float inverse = d != 0 && std::isfinite(1 / d) ? 1 / d : 0;
    put(f32_to_f16(d));
    if (has_minimum) put(f32_to_f16(low));
    uint32_t bits = 0;
    std::array<uint8_t, 16> nibbles{};
    for (size_t i = 0; i < 32; ++i) {
      const float scaled = has_minimum ? (x[i] - low) * inverse + 0.5F
                                       : x[i] * inverse + (static_cast<float>(last / 2 + 1) + 0.5F);
      const int q = std::min(last, static_cast<int>(scaled));
      bits |= static_cast<uint32_t>(q >> 4) << i;
      nibbles[i % 16] = static_cast<uint8_t>(nibbles[i % 16] | (q & 15) << (i < 16 ? 0 : 4));
    }
    if (five) put(bits);
    put(nibbles);
  }
  return bytes;
}

void encode_with(Isa isa, DType type, const float* x, std::byte* y, int64_t n, const float* importance) {
  switch (type) {
    case DType::kQ4_0:
      return ggml::encode_q4_0(x, y, n / 32, isa);
    case DType::kQ4_1:
      return ggml::encode_q4_1(x, y, n / 32, isa);
    case DType::kQ5_0:
      return ggml::encode_q5_0(x, y, n / 32, isa);
    case DType::kQ5_1:
      return ggml::encode_q5_1(x, y, n / 32, isa);
    case DType::kQ8_0:
      return ggml::encode_q8_0(x, y, n / 32, isa);
    case DType::kQ4_K:
      return ggml::encode_q4_k(x, y, n / 256, importance, isa);
    case DType::kQ5_K:
      return ggml::encode_q5_k(x, y, n / 256, importance, isa);
    default:
      return ggml::encode_q6_k(x, y, n / 256, importance, isa);
  }
}

}  // namespace

TEST_CASE("quantize: blocks of 32 match their definition, bit for bit") {
  for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1}) {
    CAPTURE(info(type).name);
    CHECK((encoded(type, awkward()) == by_definition(type, awkward())));
    const auto values = noise(32 * 4096, 8);
    CHECK((encoded(type, values) == by_definition(type, values)));
  }
}

TEST_CASE("quantize: every instruction set gives the same bytes") {
  std::vector<float> values = awkward();
  const auto more = noise(256 * 64, 4);
  values.insert(values.end(), more.begin(), more.end());
  std::vector<float> importance = noise(values.size(), 5, 1);
  for (float& each : importance) each = std::exp(2 * each);
  size_t n_paths = 0;
  for (const DType type : kQuantised)
    for (const float* weights : std::initializer_list<const float*>{nullptr, importance.data()}) {
      const Bytes expected = encoded(type, values, weights);
      for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
        if (!has_isa(isa)) continue;
        CAPTURE(info(type).name);
        CAPTURE(static_cast<int>(isa));
        Bytes found(expected.size());
        encode_with(isa, type, values.data(), found.data(), static_cast<int64_t>(values.size()), weights);
        CHECK((found == expected));
        ++n_paths;
      }
    }
  CHECK(n_paths >= 16);
}

TEST_CASE("quantize: a block's bytes do not depend on its neighbours") {
  const auto values = awkward();
  for (const DType type : kQuantised) {
    CAPTURE(info(type).name);
    const auto block = static_cast<size_t>(info(type).block_size);
    Bytes alone;
    for (size_t at = 0; at < values.size(); at += block) {
      const Bytes one = encoded(
          type, {values.begin() + static_cast<long>(at), values.begin() + static_cast<long>(at + block)});
      alone.insert(alone.end(), one.begin(), one.end());
    }
    CHECK((alone == encoded(type, values)));
  }
}

TEST_CASE(
    "quantize: more bits mean less error, and no type is off by more than half a step and its rounding") {
  const auto values = noise(256 * 256, 6);
  double square = 0;
  for (const float value : values) square += double{value} * value;
  double before = 1;
  // Each type's upper bound of the squared error on normal noise, relative to the square of the values.
  for (const auto& [type, bound] :
       {std::pair(DType::kQ4_0, 1.1e-2), std::pair(DType::kQ4_K, 6e-3), std::pair(DType::kQ5_0, 2.6e-3),
        std::pair(DType::kQ5_K, 1.5e-3), std::pair(DType::kQ6_K, 4.5e-4), std::pair(DType::kQ8_0, 4.5e-5)}) {
    CAPTURE(info(type).name);
    const double error = error_of(values, decoded(type, encoded(type, values), values.size())) / square;
    CHECK(error < bound);
    CHECK(error < before);
    before = error;
  }
}

TEST_CASE("quantize: K-quants encode values that they can represent without loss") {
  // Scales and minima of the runs are multiples of d and m, the largest of them 63 (127 in q6_K).
  std::vector<float> four(256), six(256);
  for (size_t i = 0; i < 256; ++i) {
    const size_t run = i / 32;
    const float d = 0.0078125F, m = 0.015625F;
    const size_t q = i % 32 < 16 ? i % 16 : (i * 7 + run) % 16;
    four[i] =
        d * static_cast<float>(63 - 5 * run) * static_cast<float>(q) - m * static_cast<float>(63 - 4 * run);
    const int scale = i / 16 == 0 ? -128 : 20 + 6 * static_cast<int>(i / 16);
    six[i] = d * static_cast<float>(scale) *
             static_cast<float>(i % 16 == 0 ? -32 : static_cast<int>(i * 5 % 64) - 32);
  }
  CHECK(error_of(four, decoded(DType::kQ4_K, encoded(DType::kQ4_K, four), 256)) == 0);
  CHECK(error_of(six, decoded(DType::kQ6_K, encoded(DType::kQ6_K, six), 256)) == 0);
}

TEST_CASE("quantize: K-quants spend their precision on the columns that count") {
  const auto values = noise(256 * 64, 9);
  std::vector<float> importance(values.size());
  for (size_t i = 0; i < importance.size(); ++i) importance[i] = i % 8 == 0 ? 100.0F : 1.0F;
  for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    CAPTURE(info(type).name);
    REQUIRE(uses_importance(type));
    const auto plain = decoded(type, encoded(type, values), values.size());
    const auto weighed = decoded(type, encoded(type, values, importance.data()), values.size());
    const auto on_heavy = [](size_t i) { return i % 8 == 0 ? 1.0 : 0.0; };
    CHECK(error_of(values, weighed, on_heavy) < 0.8 * error_of(values, plain, on_heavy));
    CHECK(error_of(values, weighed) > error_of(values, plain));
  }
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kF16}) {
    CHECK_FALSE(uses_importance(type));
    CHECK((encoded(type, values, importance.data()) == encoded(type, values)));
  }
}

TEST_CASE("quantize: K-quants stay finite if half of the columns, or all of them, have no importance") {
  auto values = noise(256, 10);
  std::vector<float> importance(256, 1.0F);
  for (size_t i = 0; i < 256; i += 2) importance[i] = 0;
  for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const std::vector<float> none(256, 0.0F);
    for (const std::vector<float>& weights : {importance, none})
      for (const float value : decoded(type, encoded(type, values, weights.data()), 256))
        CHECK(std::isfinite(value));
  }
}

TEST_CASE("quantize: values that a type cannot hold are refused") {
  for (const DType type : kQuantised) {
    const std::string name = type == DType::kQ4_K   ? "q4_K"
                             : type == DType::kQ5_K ? "q5_K"
                             : type == DType::kQ6_K ? "q6_K"
                                                    : std::string(info(type).name);
    CAPTURE(name);
    std::vector<float> values(256, 1.0F);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
          std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      values[200] = bad;
      CHECK(message_of([&] { encoded(type, values); }) == name + ": found a value that is not finite");
    }
    values[200] = -1e9F;
    CHECK(message_of([&] { encoded(type, values); }).starts_with(name + ": the largest value is "));
  }
  const auto values = noise(256, 1);
  for (const float bad :
       {-1.0F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> importance(256, 1.0F);
    importance[31] = bad;
    CHECK(message_of([&] { encoded(DType::kQ4_K, values, importance.data()); }) ==
          "q4_K: the importance of a column is negative or not finite");
  }
  std::byte target{};
  CHECK(message_of([&] { encode_row(DType::kQ4_K, values.data(), &target, 100); }) ==
        "100 elements are not a multiple of the 256 in a block of q4_k");
}

TEST_CASE("quantize: rows converted in parts equal those of the whole tensor, also with importance") {
  for (const int64_t columns : {256, 8192 + 512}) {
    HostTensor tensor = HostTensor::allocate(DType::kF32, {40, columns});
    const auto values = noise(static_cast<size_t>(40 * columns), 12);
    std::memcpy(tensor.writable().data(), values.data(), values.size() * 4);
    std::vector<float> importance = noise(static_cast<size_t>(columns), 13, 1);
    for (float& each : importance) each = std::exp(each);
    for (const DType type : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
      CAPTURE(info(type).name);
      const HostTensor whole = convert(tensor, type, importance.data());
      Bytes by_row;
      for (int64_t row = 0; row < 40; ++row) {
        const Bytes one = encoded(
            type, {values.begin() + row * columns, values.begin() + (row + 1) * columns}, importance.data());
        by_row.insert(by_row.end(), one.begin(), one.end());
      }
      CHECK(std::equal(whole.bytes.begin(), whole.bytes.end(), by_row.begin(), by_row.end()));
      Bytes parts(by_row.size());
      for (int64_t row = 0; row < 40; row += 7)
        convert_rows(tensor, row, std::min<int64_t>(7, 40 - row), type,
                     parts.data() + row_bytes(type, columns) * static_cast<uint64_t>(row), importance.data());
      CHECK((parts == by_row));
    }
  }
}
