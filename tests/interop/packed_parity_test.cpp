// Compares packed files, files sliced from them and splits with common embeddings in stock llama.cpp with the
// plain files of the same export.

#include <nlohmann/json.hpp>

#include "export/slice.h"
#include "support/elastic_fixture.h"
#include "support/llama_oracle.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using namespace interop;
using exporter::ExportOptions;
using exporter::PackedFile;

fs::path exported(const fs::path& reordered, const fs::path& output, const ExportOptions& options) {
  pipeline::write_artifact(reordered, options, nlohmann::ordered_json::object(), output, true);
  return output;
}

TEST_SUITE("interop") {
  TEST_CASE(
      "interop: stock llama.cpp takes a packed file for the full model, and every split for its level") {
    if (!has_oracle()) return;
    const std::pair<const char*, plan::Method> subjects[] = {{"llama", plan::Method::kUniform},
                                                             {"llama", plan::Method::kAnchors},
                                                             {"qwen2", plan::Method::kAnchors},
                                                             {"qwen3", plan::Method::kAnchors}};
    for (const auto& [family, method] : subjects) {
      CAPTURE(family);
      const ModelSpec spec = test::make_tiny_spec(family, {.tied = std::string(family) == "qwen3"});
      const test::ElasticFixture made(spec, DType::kF32, method);
      const fs::path plain = made.artifact();
      const ExportOptions packing{.types = {DType::kF32}, .levels = {}, .packed = true},
          sharing{.types = {DType::kF32}, .levels = {}, .shared_common = true};
      const fs::path packed = exported(made.reordered(), made.path() / "packed", packing);
      const fs::path shared = exported(made.reordered(), made.path() / "shared", sharing);
      const std::vector<int32_t> ids = some_ids(24, spec.n_vocab);
      CHECK(at::equal(stock_logits(plain / "full.gguf", ids, spec.n_vocab),
                      stock_logits(packed / "model.gguf", ids, spec.n_vocab)));
      const PackedFile file = PackedFile::open(packed / "model.gguf");
      for (const exporter::PackedLevel& level : file.levels()) {
        CAPTURE(level.name);
        const at::Tensor expected = stock_logits(plain / level.name, ids, spec.n_vocab);
        exporter::slice(file, level, made.path() / "sliced.gguf");
        CHECK(at::equal(expected, stock_logits(made.path() / "sliced.gguf", ids, spec.n_vocab)));
        const std::string first = fs::path(level.name).stem().string() + "-00001-of-00002.gguf";
        CHECK(at::equal(expected, stock_logits(shared / first, ids, spec.n_vocab)));
      }
    }
  }

  TEST_CASE("interop: with adapters, biases and norms, too; a merged adapter gives the adapter's logits") {
    if (!has_oracle()) return;
    const test::NoisyParts outputs{.adapters = true, .biases = true, .norm = true},
        everywhere{.adapters = true, .norm = true, .everywhere = true};
    for (const auto& [family, parts] :
         {std::pair{"llama", outputs}, {"qwen2", outputs}, {"llama", everywhere}, {"qwen3", everywhere}}) {
      CAPTURE(family);
      CAPTURE(parts.everywhere);
      const ModelSpec spec = test::make_tiny_spec(family, {.tied = std::string(family) == "qwen3"});
      const test::RepairedFixture made(spec, plan::Method::kAnchors, parts);
      const test::TemporaryDirectory work;
      const fs::path packed =
          exported(made.reordered(), work / "packed",
                   {.types = {DType::kF32}, .levels = {}, .adapter_type = DType::kF32, .packed = true});
      const PackedFile file = PackedFile::open(packed / "model.gguf");
      exporter::unpack(file, work.path());
      const std::vector<int32_t> ids = some_ids(24, spec.n_vocab);
      for (const double level : {0.6, 0.8}) {
        CAPTURE(level);
        const exporter::PackedLevel& packed_level = file.level(level);
        const fs::path lora = work / file.embedded()[*packed_level.adapter].name;
        const at::Tensor expected = stock_logits(work / packed_level.name, ids, spec.n_vocab, lora);
        exporter::slice_merged(file, packed_level, work / "merged.gguf");
        CHECK(difference(expected, stock_logits(work / "merged.gguf", ids, spec.n_vocab)) < 1e-3);
        CHECK(difference(expected, stock_logits(work / packed_level.name, ids, spec.n_vocab)) > 0.1);
      }
    }
  }
}

}  // namespace
}  // namespace elastify
