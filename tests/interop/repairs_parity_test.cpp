// Compares exported levels with repairs in stock llama.cpp with our own run of the reordered model with the
// same repairs. llama.cpp takes biases, weights and norm from the level's file and the adapter from the file
// beside it.

#include "support/llama_oracle.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using namespace interop;

struct Subject {
  std::string name;
  ModelSpec spec;
  plan::Method method;
  std::string architecture;  ///< of level 0.8; with anchors, the narrowest level may be uniform
};

/// Logits of a level with its repairs, from stock llama.cpp and from us.
struct Compared {
  at::Tensor stock, ours;
  at::Tensor plain;  ///< ours, without repairs
};

/// Runs every level of the artifact in both.
/// \param architecture  expected for level 0.8
/// \param path  the model that our run loads
std::vector<Compared> compare_levels(const test::RepairedFixture& made, const std::string& architecture,
                                     const ModelSpec& spec, const fs::path& path) {
  std::vector<Compared> levels;
  const auto manifest = nlohmann::json::parse(read_text(made.artifact() / "manifest.json"));
  const std::vector<int32_t> ids = some_ids(24, spec.n_vocab);
  const at::Tensor input = at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong).unsqueeze(0);
  for (const auto& file : manifest.at("files")) {
    const auto level = file.at("level").get<double>();
    if (level >= 1) continue;
    if (level == 0.8) CHECK(file.at("architecture") == architecture);
    fs::path lora;
    for (const auto& adapter : manifest.value("adapters", nlohmann::json::array()))
      if (adapter.at("level") == level) lora = made.artifact() / adapter.at("name").get<std::string>();
    levels.push_back(
        {stock_logits(made.artifact() / file.at("name").get<std::string>(), ids, spec.n_vocab, lora),
         test::repaired_logits(path, level, input),
         test::repaired_logits(made.reordered(), level, input, false)});
  }
  return levels;
}

/// \returns the number of levels
int check_levels(const test::RepairedFixture& made, const std::string& architecture, const ModelSpec& spec,
                 double tolerance) {
  int n_levels = 0;
  for (const Compared& level : compare_levels(made, architecture, spec, made.reordered())) {
    CAPTURE(n_levels);
    CHECK(difference(level.ours, level.stock) < tolerance);
    // The repairs are large enough that the test would notice if they were missing.
    CHECK(difference(level.ours, level.plain) > 0.1);
    ++n_levels;
  }
  return n_levels;
}

TEST_SUITE("interop") {
  TEST_CASE("interop: levels with adapter, biases, own weights and norm give our logits in stock llama.cpp") {
    if (!has_oracle()) return;
    const test::TinyOptions biased{.attention_bias = true, .mlp_bias = true};
    const Subject subjects[] = {
        {"llama", test::make_tiny_spec("llama"), plan::Method::kUniform, "llama"},
        {"llama by layer", test::make_tiny_spec("llama"), plan::Method::kAnchors, "deci"},
        {"llama with biases", test::make_tiny_spec("llama", biased), plan::Method::kUniform, "llama"},
        {"llama with biases by layer", test::make_tiny_spec("llama", biased), plan::Method::kAnchors, "deci"},
        {"qwen2", test::make_tiny_spec("qwen2"), plan::Method::kUniform, "deci"},
        {"qwen2 by layer", test::make_tiny_spec("qwen2", {.tied = true}), plan::Method::kAnchors, "deci"},
    };
    for (const Subject& subject : subjects) {
      CAPTURE(subject.name);
      const test::RepairedFixture adapted(subject.spec, subject.method, {true, true, false, true});
      adapted.export_as(DType::kF32);
      CHECK(check_levels(adapted, subject.architecture, subject.spec, 1e-3) == 2);
      const test::RepairedFixture baked(subject.spec, subject.method, {false, true, true, true});
      baked.export_as(DType::kF32);
      CHECK(check_levels(baked, subject.architecture, subject.spec, 1e-3) == 2);
    }
  }

  TEST_CASE("interop: adapters on all seven matrices apply in every graph, at uniform and searched widths") {
    if (!has_oracle()) return;
    const ModelSpec qwen3 = test::make_tiny_spec("qwen3", {.head_dim = 32, .d_ff = 128, .tied = true});
    const test::TinyOptions wide{.head_dim = 32, .d_ff = 128};
    const Subject subjects[] = {
        {"llama", test::make_tiny_spec("llama", wide), plan::Method::kUniform, "llama"},
        {"llama, searched", test::make_tiny_spec("llama", wide), plan::Method::kDp, "deci"},
        {"qwen2", test::make_tiny_spec("qwen2", wide), plan::Method::kUniform, "deci"},
        {"qwen2, searched", test::make_tiny_spec("qwen2", wide), plan::Method::kDp, "deci"},
        {"qwen3", qwen3, plan::Method::kUniform, "qwen3"},
        {"qwen3, searched", qwen3, plan::Method::kDp, "openelm"},
    };
    for (const Subject& subject : subjects) {
      CAPTURE(subject.name);
      const test::RepairedFixture made(subject.spec, subject.method,
                                       {.adapters = true, .norm = true, .everywhere = true});
      made.export_as(DType::kF32);
      CHECK(check_levels(made, subject.architecture, subject.spec, 1e-3) == 2);
      for (const DType type : {DType::kF16, DType::kQ8_0}) {
        CAPTURE(info(type).name);
        made.export_as(type, DType::kF16);
        for (const Compared& level :
             compare_levels(made, subject.architecture, subject.spec, made.artifact())) {
          // ggml rounds inputs of f16 matrices to f16, and inputs of blocks to 8 bits.
          CHECK(rms(level.ours, level.stock) < (type == DType::kF16 ? 1e-2 : 0.05));
          CHECK(rms(level.ours, level.plain) > 0.1);
        }
      }
    }
  }

  TEST_CASE("interop: weights, biases and norms of every role are a level's own in stock llama.cpp") {
    if (!has_oracle()) return;
    for (const auto method : {plan::Method::kUniform, plan::Method::kDp}) {
      const ModelSpec spec = test::make_tiny_spec("llama");
      const test::RepairedFixture made(spec, method, {false, true, true, true, true});
      made.export_as(DType::kF32);
      CHECK(check_levels(made, method == plan::Method::kDp ? "deci" : "llama", spec, 1e-3) == 2);
    }
    const ModelSpec spec = test::make_tiny_spec("qwen3", {.tied = true});
    const test::RepairedFixture made(spec, plan::Method::kDp, {false, false, true, true, true});
    made.export_as(DType::kF32);
    CHECK(check_levels(made, "openelm", spec, 1e-3) == 2);
  }

  TEST_CASE("interop: adapters apply in the graphs without biases, too, and in f16") {
    if (!has_oracle()) return;
    const ModelSpec tied = test::make_tiny_spec("qwen3", {.tied = true});
    const Subject subjects[] = {
        {"qwen3", tied, plan::Method::kUniform, "qwen3"},
        {"qwen3 by layer", tied, plan::Method::kAnchors, "openelm"},
    };
    for (const Subject& subject : subjects) {
      CAPTURE(subject.name);
      const test::RepairedFixture made(subject.spec, subject.method, {true, false, false, true});
      made.export_as(DType::kF32);
      CHECK(check_levels(made, subject.architecture, subject.spec, 1e-3) == 2);
    }
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform,
                                     {true, true, false});
    made.export_as(DType::kF32, DType::kF16);
    // ggml also rounds the inputs of f16 matrices to f16.
    CHECK(check_levels(made, "llama", test::make_tiny_spec("llama"), 2e-2) == 2);
  }
}

}  // namespace
}  // namespace elastify
