// Tests the files of levels that leave out attention or whole layers.

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "export/export_model.h"
#include "io/gguf.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using Json = nlohmann::ordered_json;

std::vector<exporter::ArtifactFile> write(const Checkpoint& source, const fs::path& target,
                                          DType type = DType::kF32, const Imatrix* imatrix = nullptr,
                                          int64_t grid = 8) {
  fs::create_directories(target);
  const ModelSpec& spec = source.spec();
  return exporter::export_model(source, nullptr, identity_permutation(spec), test::shallow_plan(spec, grid),
                                {.types = {type}, .levels = {}}, Json::object(), target, imatrix);
}

ModelSpec spec_of(const std::string& family) {
  const bool biased = family == "llama";
  return test::make_tiny_spec(family, {.n_layers = 4,
                                       .d_model = 64,
                                       .head_dim = 32,
                                       .heads_per_group = 1,
                                       .d_ff = 128,
                                       .attention_bias = biased,
                                       .mlp_bias = biased});
}

}  // namespace

TEST_CASE("depth: a level's file states zeros and holds no tensor of what is left out, in every type") {
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    for (const DType type : {DType::kF32, DType::kF16, DType::kQ8_0}) {
      CAPTURE(family);
      const ModelSpec spec = spec_of(family);
      const test::TemporaryDirectory directory;
      test::write_tiny_hf_model(spec, directory / "model", 1);
      const Checkpoint source = Checkpoint::open(directory / "model");
      const ElasticPlan plan = test::shallow_plan(spec, 32);
      const auto files = write(source, directory / "artifact", type, nullptr, 32);
      REQUIRE(files.size() == 3);
      for (const auto& file : files) {
        CAPTURE(file.name);
        const Level& level = find_level(plan, file.nominal);
        const Checkpoint read = Checkpoint::open(directory / "artifact" / file.name);
        CHECK(file.n_params == n_params(read.spec(), full_widths(read.spec())));
        size_t n_kept = 0;
        for (size_t i = 0; i < spec.tensors.size(); ++i) {
          const TensorSpec& tensor = spec.tensors[i];
          CAPTURE(tensor.name);
          const int64_t index = read.spec().find(tensor.name);
          REQUIRE((index >= 0) == is_kept(spec, tensor, level.widths));
          if (index < 0) continue;
          ++n_kept;
          const HostTensor whole = source.load(i, tensor.shape.size() > 1 ? type : DType::kF32);
          CHECK(test::same_bytes(read.load(static_cast<size_t>(index)), slice(whole, tensor, level.widths)));
        }
        CHECK(GgufFile::open(directory / "artifact" / file.name).tensors().size() == n_kept);
      }

      const GgufFile file = GgufFile::open(directory / "artifact/level-030.gguf");
      const GgufMetadata& keys = file.metadata();
      CHECK(keys.require_string("general.architecture") == "deci");
      const int64_t heads = spec.layer(0).heads_per_group;
      CHECK(*keys.integers("deci.attention.head_count") == std::vector<int64_t>{heads, 0, 0, 0});
      CHECK(*keys.integers("deci.attention.head_count_kv") == std::vector<int64_t>{1, 0, 0, 0});
      CHECK(*keys.integers("deci.feed_forward_length") == std::vector<int64_t>{32, 32, 0, 128});
      CHECK(*keys.integers("elastify.kv_groups") == std::vector<int64_t>{1, 0, 0, 0});
      CHECK(*keys.integers("elastify.d_ff") == std::vector<int64_t>{32, 32, 0, 128});
      CHECK_FALSE(file.contains("blk.1.attn_norm.weight"));
      CHECK(file.contains("blk.1.ffn_norm.weight"));
      CHECK_FALSE(file.contains("blk.2.ffn_norm.weight"));
    }
  }
}

TEST_CASE("depth: a level's importance matrix lists the matrices of its file") {
  const ModelSpec spec = spec_of("llama");
  const test::TemporaryDirectory directory;
  test::write_tiny_hf_model(spec, directory / "model", 1);
  Imatrix imatrix{
      .entries = {}, .datasets = {"text"}, .chunk_count = 1, .chunk_size = 16, .permutation_digest = {}};
  for (const TensorSpec& tensor : spec.tensors)
    if (site_of(tensor.role))
      imatrix.entries[tensor.gguf_name] = {std::vector<float>(static_cast<size_t>(tensor.shape.back()), 1.0F),
                                           16};
  write(Checkpoint::open(directory / "model"), directory / "artifact", DType::kF32, &imatrix);
  for (const char* level : {"-030", "-060", ""}) {
    CAPTURE(level);
    const Imatrix read = load_imatrix(directory / fmt::format("artifact/imatrix{}.gguf", level));
    const GgufFile model =
        GgufFile::open(directory / (*level == 0 ? std::string("artifact/full.gguf")
                                                : fmt::format("artifact/level{}.gguf", level)));
    for (const TensorSpec& tensor : spec.tensors)
      if (site_of(tensor.role))
        CHECK_MESSAGE(read.entries.contains(tensor.gguf_name) == model.contains(tensor.gguf_name),
                      tensor.gguf_name);
  }
}

TEST_CASE("depth: where no stock architecture can leave layers out, nothing is written") {
  const ModelSpec spec = test::make_tiny_spec("qwen3", {.n_layers = 4, .head_dim = 16, .tied = true});
  const test::TemporaryDirectory directory;
  test::write_tiny_hf_model(spec, directory / "model", 1);
  const Checkpoint source = Checkpoint::open(directory / "model");
  CHECK(
      test::message_of([&] { write(source, directory / "artifact"); }) ==
      "level-060: no architecture of stock llama.cpp has both norms on q and k and layers without attention, "
      "which this level has");
  CHECK(fs::is_empty(directory / "artifact"));
}

}  // namespace elastify
