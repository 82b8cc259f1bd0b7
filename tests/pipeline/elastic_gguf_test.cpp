// Compares the levels that the C header maps from packed files with the files that slicing writes.

#include "elastify/elastic_gguf.h"

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>

#include "export/slice.h"
#include "pipeline/reorder_model.h"
#include "support/elastic_fixture.h"
#include "support/mutations.h"
#include "support/repaired.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

fs::path pack(const fs::path& reordered, const fs::path& output, DType type) {
  pipeline::write_artifact(reordered, {.types = {type}, .levels = {}, .packed = true},
                           nlohmann::ordered_json::object(), output, true);
  return output / "model.gguf";
}

struct Closer {
  void operator()(elastic_gguf* file) const { elastic_gguf_close(file); }
};
using Opened = std::unique_ptr<elastic_gguf, Closer>;

/// The level's elements of a tensor, row by row, as contiguous bytes.
HostTensor gathered(const elastic_tensor& tensor, DType dtype) {
  Shape shape = {tensor.ne[0]};
  if (tensor.n_dims > 1) shape.insert(shape.begin(), tensor.ne[1]);
  HostTensor result = HostTensor::allocate(dtype, shape);
  const uint64_t row = row_bytes(dtype, tensor.ne[0]);
  for (int64_t i = 0; i < tensor.ne[1]; ++i)
    std::memcpy(result.writable().data() + static_cast<uint64_t>(i) * row,
                static_cast<const std::byte*>(tensor.data) + static_cast<uint64_t>(i) * tensor.nb[1], row);
  return result;
}

/// Checks that every tensor of every level equals that in the level's own file, with q and k in the packed
/// file's order of rows.
/// \returns the number of compared tensors
size_t check_levels(const fs::path& model, const fs::path& work) {
  std::string error(256, '\0');
  const Opened file(elastic_gguf_open(model.c_str(), error.data(), error.size()));
  REQUIRE_MESSAGE(file != nullptr, error);
  const exporter::PackedFile packed = exporter::PackedFile::open(model);
  REQUIRE(elastic_gguf_n_levels(file.get()) == packed.levels().size());
  CHECK((elastic_gguf_rope_interleaved(file.get()) == 1) == (packed.rope() == RopeOrder::kInterleaved));
  size_t compared = 0;
  for (size_t i = 0; i < packed.levels().size(); ++i) {
    const exporter::PackedLevel& expected = packed.levels()[i];
    const elastic_level& level = *elastic_gguf_level(file.get(), i);
    CAPTURE(expected.name);
    CHECK(elastic_gguf_find_level(file.get(), expected.nominal) == i);
    CHECK(level.name == expected.name);
    CHECK(level.architecture == expected.architecture);
    CHECK(level.decoder_ratio == expected.decoder_ratio);
    CHECK(level.total_ratio == expected.total_ratio);
    CHECK((std::vector<int64_t>(level.kv_groups, level.kv_groups + level.n_layers) == expected.kv_groups));
    CHECK((std::vector<int64_t>(level.d_ff, level.d_ff + level.n_layers) == expected.d_ff));
    CHECK((level.adapter != nullptr) == expected.adapter.has_value());
    if (expected.adapter) {
      const auto bytes = packed.bytes_of(packed.embedded()[*expected.adapter]);
      CHECK(level.adapter_bytes == bytes.size());
      CHECK(std::memcmp(level.adapter, bytes.data(), bytes.size()) == 0);
    }
    const RopeOrder own_rope = expected.part ? packed.part_of(expected).rope : packed.rope();
    CHECK(level.own_rope_interleaved == (own_rope == RopeOrder::kInterleaved ? 1 : 0));
    exporter::slice(packed, expected, work / "level.gguf");
    const GgufFile sliced = GgufFile::open(work / "level.gguf");
    size_t n_fused = 0;
    for (size_t t = 0; t < level.n_tensors; ++t) {
      const elastic_tensor& tensor = level.tensors[t];
      CAPTURE(tensor.name);
      if (!sliced.contains(tensor.name)) {  // q, k or v of a fused tensor
        ++n_fused;
        continue;
      }
      HostTensor found = gathered(tensor, sliced.tensor(tensor.name).dtype);
      if (expected.part && !tensor.own && exporter::is_rotary_name(tensor.name))
        found = reorder_rope_rows(found, packed.head_dim(), packed.rope(), packed.part_of(expected).rope);
      CHECK(test::same_bytes(found, sliced.tensor(tensor.name)));
      CHECK(elastic_gguf_find_tensor(&level, tensor.name) == &tensor);
      ++compared;
    }
    CHECK(level.n_tensors - n_fused + n_fused / 3 == sliced.tensors().size());
  }
  CHECK(elastic_gguf_level(file.get(), packed.levels().size()) == nullptr);
  CHECK(elastic_gguf_find_level(file.get(), 0.01) == 0);
  double width = 0;
  const std::string key =
      packed.model().metadata().require_string("general.architecture") + ".embedding_length";
  CHECK(elastic_gguf_number(file.get(), key.c_str(), &width) == 1);
  CHECK(width == 32);
  CHECK(elastic_gguf_number(file.get(), "general.architecture", &width) == 0);
  return compared;
}

}  // namespace

TEST_SUITE("pipeline") {
  TEST_CASE("elastic_gguf.h: every tensor of every level is the sliced file's, without a copy") {
    for (const auto& variant : test::tiny_variants()) {
      if (variant.spec.qk_norm && !variant.spec.tied) continue;
      CAPTURE(variant.name);
      const test::ElasticFixture made(variant.spec, DType::kF32, plan::Method::kAnchors);
      CHECK(check_levels(pack(made.reordered(), made.path() / "p", DType::kF16), made.path()) > 50);
    }
    for (const bool baked : {false, true}) {
      const test::RepairedFixture made(test::make_tiny_spec("qwen2"), plan::Method::kAnchors,
                                       {!baked, true, baked});
      const test::TemporaryDirectory work;
      CHECK(check_levels(pack(made.reordered(), work / "p", DType::kF32), work.path()) > 60);
    }
    for (const char* family : {"llama", "qwen2", "qwen3"}) {
      CAPTURE(family);
      const test::RepairedFixture made(test::make_tiny_spec(family, {.tied = true}), plan::Method::kAnchors,
                                       {.weights = true, .norm = true, .everywhere = true});
      const test::TemporaryDirectory work;
      CHECK(check_levels(pack(made.reordered(), work / "p", DType::kF32), work.path()) > 40);
    }
    const ModelSpec deep = test::make_tiny_spec("llama", {.n_layers = 4, .head_dim = 32, .d_ff = 128});
    const test::ElasticFixture shallow(deep, test::shallow_plan(deep, 32));
    CHECK(check_levels(pack(shallow.reordered(), shallow.path() / "p", DType::kQ8_0), shallow.path()) > 60);
  }

  TEST_CASE("elastic_gguf.h: what is no packed file is refused, with a reason") {
    const test::ElasticFixture made(test::make_tiny_spec("llama"));
    char error[256];
    CHECK(elastic_gguf_open((made.artifact() / "full.gguf").c_str(), error, sizeof error) == nullptr);
    CHECK(std::string(error).find("no packed file of version 1") != std::string::npos);
    CHECK(elastic_gguf_open((made.artifact() / "plan.json").c_str(), error, sizeof error) == nullptr);
    CHECK(std::string(error) == "not a GGUF file");
    CHECK(elastic_gguf_open("/nowhere", error, sizeof error) == nullptr);
    CHECK(std::string(error).find("cannot open") == 0);
    CHECK(elastic_gguf_open("/dev/null", nullptr, 0) == nullptr);
    elastic_gguf_close(nullptr);
  }

  TEST_CASE("elastic_gguf.h: mutations are refused, or their tables lie inside of the file") {
    const test::RepairedFixture made(
        test::make_tiny_spec("qwen2", {.n_layers = 1, .d_model = 8, .n_vocab = 8}), plan::Method::kUniform,
        {true, true, false});
    const test::TemporaryDirectory work;
    const fs::path model = pack(made.reordered(), work / "p", DType::kF32);
    uint64_t sum = 0;
    const auto count = test::read_mutations(read_text(model), 8000, [&](const fs::path& path) {
      char error[64];
      const Opened file(elastic_gguf_open(path.c_str(), error, sizeof error));
      if (file == nullptr) {
        if (error[0] == '\0') throw std::logic_error("refused without a reason");
        throw Error(error);
      }
      size_t size = 0;
      const auto* base = static_cast<const std::byte*>(elastic_gguf_base(file.get(), &size));
      for (size_t i = 0; i < elastic_gguf_n_levels(file.get()); ++i) {
        const elastic_level& level = *elastic_gguf_level(file.get(), i);
        for (size_t t = 0; t < level.n_tensors; ++t) {
          const elastic_tensor& tensor = level.tensors[t];
          const auto* first = static_cast<const std::byte*>(tensor.data);
          const uint64_t rows = static_cast<uint64_t>(tensor.ne[1]) * tensor.nb[1];
          if (first < base || rows > size || first + rows > base + size) throw std::logic_error(tensor.name);
          sum += test::sum_of({first, rows});
        }
        if (level.adapter != nullptr)
          sum += test::sum_of({static_cast<const std::byte*>(level.adapter), level.adapter_bytes});
      }
    });
    CHECK(sum != 0);
    CHECK(count.refused > 1000);
    CHECK(count.accepted > 1000);
  }

  TEST_CASE("elastic_gguf.h: the example switches levels, and refuses what it cannot read") {
    const test::ElasticFixture made(test::make_tiny_spec("llama"));
    const fs::path model = pack(made.reordered(), made.path() / "p", DType::kF16), log = made.path() / "log";
    const auto run = [&](const fs::path& file) {
      const int status = std::system(fmt::format("'{}/switch_levels' '{}' 3 >'{}' 2>&1", ELASTIFY_BINARY_DIR,
                                                 file.string(), log.string())
                                         .c_str());
      return WEXITSTATUS(status);
    };
    CHECK(run(model) == 0);
    CHECK(read_text(log).find("by table        9 switches") != std::string::npos);
    CHECK(run(made.artifact() / "full.gguf") == 1);
    CHECK(read_text(log).find("full.gguf: no packed file") != std::string::npos);
  }
}

}  // namespace elastify
