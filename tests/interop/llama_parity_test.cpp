// Compares exported files in stock llama.cpp with our own run of the same weights. tests/interop/setup.sh
// builds the oracle.

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/permutation.h"
#include "nn/decoder.h"
#include "pipeline/measure_profile.h"
#include "pipeline/reorder_model.h"
#include "support/elastic_fixture.h"
#include "support/llama_oracle.h"
#include "support/shared_data.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using namespace interop;

at::Tensor our_logits(const nn::Decoder& decoder, const std::vector<int32_t>& ids, const Widths* widths) {
  at::NoGradGuard no_grad;
  const auto input = at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong).unsqueeze(0);
  nn::ForwardOptions options;
  options.widths = widths;
  return decoder.logits(decoder.hidden(input, options)).squeeze(0);
}

/// Compares every level file of an artifact with views of the reordered model.
/// \param tolerance  largest difference, as a share of the logits' standard deviation
void check_artifact(const fs::path& reordered, const fs::path& artifact, const std::vector<int32_t>& ids,
                    double tolerance = 1e-3) {
  const pipeline::OpenModel model = pipeline::open_model(reordered, {});
  const nn::Decoder decoder(model.checkpoint, {});
  const auto manifest = nlohmann::json::parse(read_text(artifact / "manifest.json"));
  for (const auto& file : manifest.at("files")) {
    const auto name = file.at("name").get<std::string>();
    if (fs::path(name).extension() != ".gguf") continue;
    CAPTURE(name);
    CAPTURE(file.at("architecture").get<std::string>());
    const Level& level = find_level(*model.plan, file.at("level").get<double>());
    const auto expected = our_logits(decoder, ids, &level.widths);
    CHECK(difference(expected, stock_logits(artifact / name, ids, model.checkpoint.spec().n_vocab)) <
          tolerance);
  }
}

TEST_SUITE("interop") {
  TEST_CASE(
      "interop: every level of every family gives our logits in stock llama.cpp, uniform and with anchors") {
    if (!has_oracle()) return;
    std::map<std::string, int> architectures;
    for (const auto& variant : test::tiny_variants()) {
      for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
        CAPTURE(variant.name);
        // No stock graph has q/k norms together with biases, or together with an untied output matrix and
        // per-layer widths.
        if (variant.spec.qk_norm &&
            (variant.spec.qkv_bias || (!variant.spec.tied && method == plan::Method::kAnchors))) {
          CHECK_THROWS_AS(test::ElasticFixture(variant.spec, DType::kF32, method), Error);
          continue;
        }
        const test::ElasticFixture made(variant.spec, DType::kF32, method);
        // Stock graphs have full attention, so compare only inside the window.
        const int64_t window = variant.spec.layer(0).sliding_window;
        const int64_t n = window > 0 ? window : 24;
        check_artifact(made.reordered(), made.artifact(), some_ids(n, variant.spec.n_vocab));
        const auto manifest = nlohmann::json::parse(read_text(made.artifact() / "manifest.json"));
        for (const auto& file : manifest.at("files"))
          ++architectures[file.at("architecture").get<std::string>()];
      }
    }
    for (const std::string name : {"llama", "deci", "qwen2", "qwen3", "openelm"}) {
      CAPTURE(name);
      CHECK(architectures[name] > 0);
    }
  }

  TEST_CASE("interop: levels without some attention and some layers give our logits in stock llama.cpp") {
    if (!has_oracle()) return;
    const test::TinyOptions deep{.n_layers = 4};
    test::TinyOptions shared{.n_layers = 4, .n_kv_heads = 4, .heads_per_group = 1, .tied = true};
    test::TinyOptions biased{.n_layers = 4, .attention_bias = true, .mlp_bias = true};
    test::TinyOptions scaled{.n_layers = 4, .head_dim = 16, .llama3_rope = true};
    const std::pair<const char*, test::TinyOptions> models[] = {
        {"llama", deep},   {"llama", shared}, {"llama", biased}, {"llama", scaled},
        {"mistral", deep}, {"qwen2", deep},   {"qwen2", shared}};
    for (const auto& [family, options] : models) {
      CAPTURE(family);
      const ModelSpec spec = test::make_tiny_spec(family, options);
      const test::ElasticFixture made(spec, test::shallow_plan(spec));
      check_artifact(made.reordered(), made.artifact(), some_ids(24, spec.n_vocab));
      // The file gives the same logits when we open it as a model.
      const nn::Decoder level(Checkpoint::open(made.artifact() / "level-030.gguf"), {});
      CHECK(difference(our_logits(level, some_ids(24, spec.n_vocab), nullptr),
                       stock_logits(made.artifact() / "level-030.gguf", some_ids(24, spec.n_vocab),
                                    spec.n_vocab)) < 1e-3);
    }
  }

  TEST_CASE("interop: levels of SmolLM2-135M give our logits in stock llama.cpp, uniform and with anchors") {
    const fs::path model = fs::path(ELASTIFY_SOURCE_DIR) / "models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!has_oracle()) return;
    if (!fs::exists(model)) {
      test::skip("scripts/fetch_model.sh has not run");
      return;
    }
    const pipeline::OpenModel source = pipeline::open_model(model, {});
    const auto ids =
        make_tokenizer(*source.vocabulary)
            ->encode("Mr. Speaker, the state of our Union is strong, and its people are working.");
    // A good order keeps the logits meaningful. Those of a level in random order, or of a
    // much narrower one, differ between processors.
    profile::ProfileOptions profiling;
    profiling.text.data = {"self"};
    profiling.text.tokens = 512;
    profiling.removal_tokens = 0;
    profiling.metrics = {Metric::kTaylor};
    Profile profile = pipeline::measure_profile(source, {}, profiling).profile;
    for (int64_t layer = 0; layer < source.checkpoint.spec().n_layers; ++layer)
      profile.removal_loss.push_back(std::abs(14.5 - static_cast<double>(layer)));
    for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
      const test::TemporaryDirectory directory;
      pipeline::RunConfig config;
      config.reorder.metric = Metric::kTaylor;
      config.reorder.plan.method = method;
      config.reorder.plan.levels = {0.5, 0.7, 1.0};
      pipeline::write_reordered(source, {&profile}, config, directory.path() / "reordered", false);
      exporter::ExportOptions export_options;
      export_options.types = {DType::kF32};
      pipeline::write_artifact(directory.path() / "reordered", export_options,
                               nlohmann::ordered_json::object(), directory.path() / "artifact", false);
      // Narrow levels without repair amplify rounding: OpenBLAS's kernels alone move their logits by 1e-3.
      check_artifact(directory.path() / "reordered", directory.path() / "artifact", ids, 3e-3);
    }
  }

  TEST_CASE(
      "interop: every level of stories3M gives our logits in stock llama.cpp, loads and generates through "
      "node-llama-cpp, "
      "and parses in @huggingface/gguf") {
    if (!has_oracle() || !test::has_shared_data()) return;
    const fs::path model = test::shared_data() / "models/stories3M/stories3M-q80.bin";
    const pipeline::OpenModel source =
        pipeline::open_model(model, test::shared_data() / "models/stories3M/tok4096.model");
    const auto ids = make_tokenizer(*source.vocabulary)
                         ->encode("Once upon a time there was a little girl named Lily. She liked to play.");
    profile::ProfileOptions profiling;
    profiling.text.data = {
        (test::shared_data() / "datasets/tinystories/tinystories_v2gpt4_10k_lines.txt").string()};
    profiling.text.tokens = 2048;
    const Profile profile = pipeline::measure_profile(source, {}, profiling).profile;
    for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
      const test::TemporaryDirectory directory;
      pipeline::RunConfig config;
      config.reorder.plan.method = method;
      pipeline::write_reordered(source, {&profile}, config, directory.path() / "reordered", false);
      exporter::ExportOptions export_options;
      export_options.types = {DType::kF32};
      pipeline::write_artifact(directory.path() / "reordered", export_options,
                               nlohmann::ordered_json::object(), directory.path() / "artifact", false);
      check_artifact(directory.path() / "reordered", directory.path() / "artifact", ids);

      std::string files;
      int n = 0;
      for (const auto& entry : fs::directory_iterator(directory.path() / "artifact")) {
        if (entry.path().extension() != ".gguf") continue;
        files += fmt::format(" '{}'", entry.path().string());
        ++n;
      }
      CHECK(n == 9);
      const fs::path scripts = fs::path(ELASTIFY_SOURCE_DIR) / "tests/interop",
                     out = directory.path() / "out";
      REQUIRE(shell(fmt::format("node '{}' --prompt 'Once upon a time' --tokens 6 {} >'{}' 2>/dev/null",
                                (scripts / "load.mjs").string(), files, out.string())) == 0);
      int loaded = 0;
      std::istringstream lines(read_text(out));
      for (std::string line; std::getline(lines, line);) {
        const auto result = nlohmann::json::parse(line);
        CAPTURE(line);
        CHECK(result.at("loads").get<bool>());
        CHECK(!result.at("text").get<std::string>().empty());
        ++loaded;
      }
      CHECK(loaded == n);
      CHECK(shell(fmt::format("node '{}' {} >/dev/null", (scripts / "parse.mjs").string(), files)) == 0);
    }
  }
}

}  // namespace
}  // namespace elastify
