// Compares our encoders with ggml's, from the library that node-llama-cpp ships, and tests quantised
// artifacts in stock llama.cpp.

#include <dlfcn.h>

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "io/dtype.h"
#include "nn/decoder.h"
#include "pipeline/reorder_model.h"
#include "pipeline/verify.h"
#include "support/elastic_fixture.h"
#include "support/llama_oracle.h"
#include "support/shared_data.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using namespace interop;

/// size_t ggml_quantize_chunk(type, source, target, first element, rows, columns, importance)
using QuantizeChunk = size_t (*)(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
using Dequantize = void (*)(const void*, float*, int64_t);

template <typename Function>
Function ggml_function(const char* name) {
  static void* const library =
      dlopen((fs::path(ELASTIFY_SOURCE_DIR) /
              "tests/interop/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so")
                 .c_str(),
             RTLD_NOW | RTLD_LOCAL);
  return library == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(library, name));
}

bool has_ggml() {
  if (ggml_function<QuantizeChunk>("ggml_quantize_chunk") != nullptr) return true;
  test::skip("tests/interop/setup.sh has not run");
  return false;
}

struct Matrix {
  std::string name;
  int64_t rows, columns;
  std::vector<float> values;
};

std::vector<Matrix> matrices() {
  std::vector<Matrix> all;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto make = [&](const std::string& name, int64_t rows, int64_t columns, auto&& value) {
    Matrix& matrix = all.emplace_back(Matrix{name, rows, columns, {}});
    for (int64_t i = 0; i < rows * columns; ++i) matrix.values.push_back(value(normal(random)));
  };
  make("normal", 64, 1024, [](float x) { return 0.02F * x; });
  make("heavy tails", 64, 512, [](float x) { return 0.01F * x * x * x; });
  make("shifted", 16, 256, [](float x) { return 1 + 0.1F * x; });
  make("positive", 16, 256, [](float x) { return std::abs(x); });
  make("few values", 16, 256, [](float x) { return std::round(x); });
  make("one row", 1, 4096, [](float x) { return 3e-3F * x; });
  const fs::path stories = test::shared_data() / "models/stories3M/stories3M-q80.bin";
  if (test::has_shared_data()) {
    const Checkpoint model = Checkpoint::open(stories);
    for (size_t i = 0; i < model.spec().tensors.size(); ++i) {
      const TensorSpec& tensor = model.spec().tensors[i];
      if (tensor.shape.size() < 2 || tensor.shape[1] % 32 != 0) continue;
      const HostTensor loaded = model.load(i, DType::kF32);
      const auto* first = reinterpret_cast<const float*>(loaded.bytes.data());
      all.push_back(
          {tensor.name, tensor.shape[0], tensor.shape[1], {first, first + n_elements(tensor.shape)}});
    }
  }
  return all;
}

std::vector<std::byte> by_ggml(DType type, const Matrix& matrix, const float* importance) {
  std::vector<std::byte> bytes(n_bytes(type, {matrix.rows, matrix.columns}));
  ggml_function<QuantizeChunk>("ggml_quantize_chunk")(static_cast<int>(info(type).ggml_type),
                                                      matrix.values.data(), bytes.data(), 0, matrix.rows,
                                                      matrix.columns, importance);
  return bytes;
}

std::vector<std::byte> by_us(DType type, const Matrix& matrix, const float* importance) {
  const HostTensor tensor{
      DType::kF32, {matrix.rows, matrix.columns}, std::as_bytes(std::span(matrix.values)), nullptr};
  const HostTensor encoded = convert(tensor, type, importance);
  return {encoded.bytes.begin(), encoded.bytes.end()};
}

double error_of(DType type, const Matrix& matrix, const std::vector<std::byte>& bytes,
                const float* importance) {
  std::vector<float> decoded(matrix.values.size());
  decode_row(type, bytes.data(), decoded.data(), static_cast<int64_t>(decoded.size()));
  double sum = 0;
  for (size_t i = 0; i < decoded.size(); ++i)
    sum += (importance == nullptr ? 1.0 : importance[i % static_cast<size_t>(matrix.columns)]) *
           std::pow(double{matrix.values[i]} - double{decoded[i]}, 2);
  return sum;
}

}  // namespace

TEST_SUITE("interop") {
  TEST_CASE("interop: blocks of 32 are encoded to ggml's bytes") {
    if (!has_ggml()) return;
    for (const Matrix& matrix : matrices())
      for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0}) {
        CAPTURE(matrix.name);
        CAPTURE(info(type).name);
        CHECK((by_us(type, matrix, nullptr) == by_ggml(type, matrix, nullptr)));
      }
  }

  TEST_CASE("interop: K-quants err at most 1.01 times as much as ggml's, with and without importance") {
    if (!has_ggml()) return;
    size_t n = 0;
    for (const Matrix& matrix : matrices()) {
      if (matrix.columns % 256 != 0) continue;
      std::mt19937 random(9);
      std::normal_distribution<float> normal;
      std::vector<float> importance(static_cast<size_t>(matrix.columns));
      for (float& each : importance) each = std::exp(1.5F * normal(random));
      for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kQ6_K})
        for (const float* weights : std::initializer_list<const float*>{nullptr, importance.data()}) {
          CAPTURE(matrix.name);
          CAPTURE(info(type).name);
          CAPTURE((weights != nullptr));
          CHECK(error_of(type, matrix, by_us(type, matrix, weights), weights) <=
                1.01 * error_of(type, matrix, by_ggml(type, matrix, weights), weights));
          ++n;
        }
    }
    CHECK(n >= 36);
  }

  TEST_CASE("interop: every type decodes to ggml's floats") {
    if (!has_ggml()) return;
    const std::pair<DType, const char*> decoders[] = {
        {DType::kQ4_0, "dequantize_row_q4_0"}, {DType::kQ4_1, "dequantize_row_q4_1"},
        {DType::kQ5_0, "dequantize_row_q5_0"}, {DType::kQ5_1, "dequantize_row_q5_1"},
        {DType::kQ8_0, "dequantize_row_q8_0"}, {DType::kQ4_K, "dequantize_row_q4_K"},
        {DType::kQ5_K, "dequantize_row_q5_K"}, {DType::kQ6_K, "dequantize_row_q6_K"}};
    const Matrix matrix = matrices().front();
    for (const auto& [type, name] : decoders) {
      CAPTURE(name);
      const auto dequantize = ggml_function<Dequantize>(name);
      REQUIRE((dequantize != nullptr));
      const auto bytes = by_us(type, matrix, nullptr);
      std::vector<float> ours(matrix.values.size()), theirs(ours.size());
      const auto n = static_cast<int64_t>(ours.size());
      decode_row(type, bytes.data(), ours.data(), n);
      dequantize(bytes.data(), theirs.data(), n);
      CHECK(std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(float)) == 0);
    }
  }

  TEST_CASE("interop: quantised levels give the logits of their decoded weights in stock llama.cpp") {
    if (!has_oracle()) return;
    const ModelSpec spec = test::make_tiny_spec(
        "llama",
        {.n_layers = 3, .d_model = 256, .head_dim = 64, .n_kv_heads = 2, .heads_per_group = 4, .d_ff = 768});
    ElasticPlan plan;
    plan.spec_hash = spec_hash(spec);
    plan.method = "anchors";
    plan.grid = 256;
    Widths narrow = full_widths(spec);
    for (const int64_t layer : {0, 2}) {
      narrow[spec.attention_space(layer)] = 1;
      narrow[spec.mlp_space(layer)] = 256;
    }
    plan.levels = {make_level(spec, 0.5, narrow), make_level(spec, 1, full_widths(spec))};
    const test::ElasticFixture made(spec, plan);
    exporter::ExportOptions options;
    options.types = exporter::weight_types_named("q8_0,q4_0,q4_1,q5_0,q5_1,q4_k,q5_k,q6_k,q4_k_m,q5_k_m");
    const fs::path artifact = made.path() / "types";
    pipeline::write_artifact(made.reordered(), options, nlohmann::ordered_json::object(), artifact, false);
    const auto ids = some_ids(24, spec.n_vocab);
    for (const auto& type : options.types)
      for (const char* name : {"full.gguf", "level-050.gguf"}) {
        CAPTURE(type.name());
        CAPTURE(name);
        const fs::path file = artifact / type.name() / name;
        at::NoGradGuard no_grad;
        const nn::Decoder decoder(Checkpoint::open(file), {});
        const auto input = at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong).unsqueeze(0);
        const auto expected = decoder.logits(decoder.hidden(input, {})).squeeze(0);
        const auto found = stock_logits(file, ids, spec.n_vocab);
        // Stock llama.cpp also rounds the inputs of quantised matrices to 8 bits. This changes logits by
        // about 0.03 for every type; wrong weights change them by 1 and more.
        const double rms =
            (expected - found).square().mean().sqrt().item<double>() / expected.std().item<double>();
        CAPTURE(rms);
        CHECK(rms < 0.05);
      }
    for (const auto& finding : pipeline::verify(artifact, made.model(), {}, {})) {
      CAPTURE(finding.claim);
      CAPTURE(finding.detail);
      CHECK(finding.holds);
    }
  }
}

}  // namespace elastify
