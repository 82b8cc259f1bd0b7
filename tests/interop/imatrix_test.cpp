// Tests importance matrices of an artifact in stock llama.cpp. tests/interop/setup.sh builds the tool.

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/imatrix.h"
#include "pipeline/reorder_model.h"
#include "support/elastic_fixture.h"
#include "support/imatrices.h"
#include "support/llama_oracle.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using namespace interop;

struct Quantized {
  bool done = false;
  std::string said;
};

Quantized quantize(const std::string& imatrix, const fs::path& model, const fs::path& out) {
  const test::TemporaryDirectory directory;
  const fs::path log = directory.path() / "log";
  const int status = shell(fmt::format("'{}' '{}' '{}' '{}' >'{}' 2>&1", tool("llama_quantize").string(),
                                       imatrix, model.string(), out.string(), log.string()));
  return {status == 0, read_text(log)};
}

}  // namespace

TEST_SUITE("interop") {
  TEST_CASE(
      "interop: stock llama.cpp quantises every level by its importance matrix, and by no other level's") {
    if (!has_oracle()) return;
    const test::TinyOptions wide{
        .d_model = 64, .head_dim = 16, .n_kv_heads = 4, .heads_per_group = 2, .d_ff = 128, .tied = true};
    for (const auto& [family, method] :
         {std::pair("llama", plan::Method::kUniform), std::pair("llama", plan::Method::kAnchors),
          std::pair("qwen3", plan::Method::kAnchors)}) {
      const ModelSpec spec = test::make_tiny_spec(family, wide);
      const test::ElasticFixture made(spec, DType::kF32, method);
      const fs::path measured = made.path() / "measured.gguf", artifact = made.path() / "with";
      save_imatrix(test::uneven_imatrix(spec), measured);
      exporter::ExportOptions options;
      options.types = {DType::kF32};
      options.imatrix = measured.string();
      const auto files = pipeline::write_artifact(made.reordered(), options, nlohmann::ordered_json::object(),
                                                  artifact, false);
      REQUIRE(files.size() > 1);
      for (const auto& file : files) {
        CAPTURE(file.name);
        CAPTURE(file.architecture);
        REQUIRE(file.imatrix.has_value());
        const fs::path plain = made.path() / "plain.gguf", weighed = made.path() / "weighed.gguf";
        const Quantized without = quantize("none", artifact / file.name, plain);
        REQUIRE_MESSAGE(without.done, without.said);
        const Quantized with =
            quantize((artifact / file.imatrix->name).string(), artifact / file.name, weighed);
        REQUIRE_MESSAGE(with.done, with.said);
        const size_t per_layer = file.architecture == "openelm" ? 5 : 7;
        CHECK(with.said.find(fmt::format("entries {}\ndatasets 1\nchunks 4 of 16\n",
                                         per_layer * static_cast<size_t>(spec.n_layers))) !=
              std::string::npos);
        CHECK(read_text(plain) != read_text(weighed));
      }
      const Quantized wrong = quantize((artifact / "imatrix.gguf").string(), artifact / files.back().name,
                                       made.path() / "wrong.gguf");
      CHECK_FALSE(wrong.done);
      CHECK(wrong.said.find("imatrix size") != std::string::npos);
    }
  }

  TEST_CASE("interop: stock llama.cpp quantises levels that leave out attention and layers") {
    if (!has_oracle()) return;
    const ModelSpec spec =
        test::make_tiny_spec("llama", {.n_layers = 4, .d_model = 64, .head_dim = 32, .d_ff = 128});
    const test::ElasticFixture made(spec, test::shallow_plan(spec, 32));
    const fs::path measured = made.path() / "measured.gguf", artifact = made.path() / "with";
    save_imatrix(test::uneven_imatrix(spec), measured);
    exporter::ExportOptions options;
    options.types = {DType::kF32};
    options.imatrix = measured.string();
    for (const auto& file : pipeline::write_artifact(made.reordered(), options,
                                                     nlohmann::ordered_json::object(), artifact, false)) {
      CAPTURE(file.name);
      const fs::path out = made.path() / "quantised.gguf";
      const Quantized with = quantize((artifact / file.imatrix->name).string(), artifact / file.name, out);
      REQUIRE_MESSAGE(with.done, with.said);
      const Checkpoint read = Checkpoint::open(out);
      CHECK(read.spec().layer_kv_heads == Checkpoint::open(artifact / file.name).spec().layer_kv_heads);
    }
  }
}

}  // namespace elastify
