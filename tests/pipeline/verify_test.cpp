#include "pipeline/verify.h"

#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "io/gguf.h"
#include "model/checkpoint.h"
#include "model/permutation.h"
#include "pipeline/artifact.h"
#include "support/elastic_fixture.h"
#include "support/imatrices.h"
#include "support/tiny_model.h"

namespace elastify::pipeline {
namespace {

using test::ElasticFixture;

std::string refutation(const fs::path& output, const fs::path& model) {
  for (const Finding& finding : verify(output, model, {}, {}))
    if (!finding.holds) return finding.claim + ": " + finding.detail;
  return "";
}

void overwrite(const fs::path& file, uint64_t offset, const std::string& bytes) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream << bytes;
}

/// Updates the size and hash of a changed file in the manifest.
void restate_hash(const fs::path& artifact, const std::string& name) {
  auto manifest = nlohmann::ordered_json::parse(read_text(artifact / "manifest.json"));
  for (auto& file : manifest["files"])
    if (file["name"] == name) {
      file["sha256"] = sha256_file(artifact / name);
      file["bytes"] = fs::file_size(artifact / name);
    }
  write_text(artifact / "manifest.json", manifest.dump(2));
}

/// The offset of a tensor's data in a file.
uint64_t offset_in_file(const fs::path& path, const std::string& tensor) {
  const GgufFile file = GgufFile::open(path);
  const auto first = file.tensor(file.tensors().front().name);
  uint64_t total = 0;
  for (const auto& entry : file.tensors()) total += (n_bytes(entry.dtype, entry.shape) + 31) / 32 * 32;
  const uint64_t data = (fs::file_size(path) + 31) / 32 * 32 - total;
  return data + static_cast<uint64_t>(file.tensor(tensor).bytes.data() - first.bytes.data());
}

TEST_SUITE("pipeline") {
  TEST_CASE("verify: outputs of every family are proved, in every type") {
    for (const auto& variant : test::tiny_variants()) {
      if (variant.spec.qk_norm && variant.spec.qkv_bias)
        continue;  // no stock architecture, nothing to export
      for (const DType type : {DType::kF32, DType::kF16}) {
        CAPTURE(variant.name);
        CAPTURE(info(type).name);
        const ElasticFixture made(variant.spec, type);
        CHECK(refutation(made.reordered(), made.model()) == "");
        CHECK(refutation(made.artifact(), made.model()) == "");
      }
    }
  }

  TEST_CASE("verify: a quantised artifact of every family is proved") {
    test::TinyOptions wide;
    wide.head_dim = 32;
    wide.d_ff = 128;
    for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
      CAPTURE(family);
      const ElasticFixture made(test::make_tiny_spec(family, wide), DType::kQ8_0);
      CHECK(refutation(made.artifact(), made.model()) == "");
    }
  }

  TEST_CASE("verify: another model of the same shape is refuted") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const ElasticFixture made(spec), other(spec, DType::kF32, plan::Method::kUniform, 2);
    CHECK(refutation(made.reordered(), other.model()).find("undoing the permutation") == 0);
    CHECK(refutation(made.artifact(), other.model()).find("undoing the permutation") == 0);
  }

  TEST_CASE("verify: a model of another shape is refuted") {
    test::TinyOptions wide;
    wide.d_ff = 96;
    const ElasticFixture made(test::make_tiny_spec("llama")), other(test::make_tiny_spec("llama", wide));
    CHECK(refutation(made.reordered(), other.model()).find("it was made from a model of this shape") == 0);
    CHECK(refutation(made.artifact(), other.model()).find("it was made from a model of this shape") == 0);
  }

  TEST_CASE("verify: a flipped byte is refuted by its hash, and by its value when the hash is restated") {
    const ElasticFixture made(test::make_tiny_spec("llama"));
    const uint64_t offset = offset_in_file(made.artifact() / "full.gguf", "blk.1.ffn_up.weight");
    overwrite(made.artifact() / "full.gguf", offset + 64, "x");
    CHECK(refutation(made.artifact(), made.model()).find("every file has the hash") == 0);
    restate_hash(made.artifact(), "full.gguf");
    const std::string found = refutation(made.artifact(), made.model());
    CHECK(found.find("undoing the permutation") == 0);
    CHECK(found.find("model.layers.1.mlp.up_proj.weight") != std::string::npos);
  }

  TEST_CASE("verify: two units swapped in one tensor only are refuted") {
    const ElasticFixture made(test::make_tiny_spec("llama"));
    const fs::path file = made.artifact() / "full.gguf";
    const uint64_t offset = offset_in_file(file, "blk.0.ffn_gate.weight");
    const auto rows = GgufFile::open(file).tensor("blk.0.ffn_gate.weight");
    const uint64_t row = row_bytes(rows.dtype, rows.shape[1]);
    const std::string first(reinterpret_cast<const char*>(rows.bytes.data()), row);
    const std::string second(reinterpret_cast<const char*>(rows.bytes.data()) + row, row);
    overwrite(file, offset, second + first);
    restate_hash(made.artifact(), "full.gguf");
    CHECK(refutation(made.artifact(), made.model()).find("model.layers.0.mlp.gate_proj.weight: row ") !=
          std::string::npos);
  }

  TEST_CASE("verify: a level that is not a prefix of the full model is refuted") {
    const ElasticFixture made(test::make_tiny_spec("llama"));
    const fs::path file = made.artifact() / "level-060.gguf";
    overwrite(file, offset_in_file(file, "blk.0.attn_v.weight"), "abcd");
    restate_hash(made.artifact(), "level-060.gguf");
    const std::string found = refutation(made.artifact(), made.model());
    CHECK(found.find("every level is a prefix") == 0);
    CHECK(found.find("level-060.gguf: model.layers.0.self_attn.v_proj.weight: row 0, column 0") !=
          std::string::npos);
  }

  TEST_CASE("verify: a permutation that is not the one used is refuted") {
    const ElasticFixture made(test::make_tiny_spec("llama"));
    const ModelSpec spec = Checkpoint::open(made.model()).spec();
    Permutation permutation = load_permutation(made.reordered() / "permutation.h5", spec);
    std::swap(permutation.orders[spec.mlp_space(0)][0], permutation.orders[spec.mlp_space(0)][1]);
    fs::remove(made.reordered() / "permutation.h5");
    save_permutation(permutation, spec, made.reordered() / "permutation.h5");
    CHECK(refutation(made.reordered(), made.model()).find("undoing the permutation") == 0);
  }

  TEST_CASE("verify: levels that leave out attention and layers are proved") {
    for (const char* family : {"llama", "mistral", "qwen2"}) {
      CAPTURE(family);
      const ModelSpec spec = test::make_tiny_spec(family, {.n_layers = 4});
      const ElasticFixture made(spec, test::shallow_plan(spec));
      CHECK(refutation(made.reordered(), made.model()) == "");
      CHECK(refutation(made.artifact(), made.model()) == "");
    }
    const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4, .head_dim = 32, .d_ff = 128});
    const ElasticFixture quantised(spec, test::shallow_plan(spec, 32), DType::kQ8_0);
    CHECK(refutation(quantised.artifact(), quantised.model()) == "");
  }

  TEST_CASE("verify: a level that leaves out other halves than its plan does is refuted, byte by byte too") {
    const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4});
    const ElasticPlan plan = test::shallow_plan(spec);
    const ElasticFixture made(spec, plan);
    const fs::path level = made.artifact() / "level-060.gguf";
    const std::string claim = "every level is a prefix of the full model, bytewise, and of the next level: ";
    const std::string good = read_text(level);

    overwrite(level, offset_in_file(level, "blk.1.ffn_up.weight"), "abcd");
    restate_hash(made.artifact(), "level-060.gguf");
    CHECK(refutation(made.artifact(), made.model())
              .find(claim + "level-060.gguf: model.layers.1.mlp.up_proj.weight: row 0, column 0") == 0);

    // A narrower level under the wider one's name lacks the last layer's attention.
    write_text(level, read_text(made.artifact() / "level-030.gguf"));
    restate_hash(made.artifact(), "level-060.gguf");
    CHECK(refutation(made.artifact(), made.model()) ==
          claim + "level-060.gguf: tensor model.layers.3.input_layernorm.weight of the source is missing");

    // The full model under the level's name has layers that the plan leaves out.
    write_text(level, read_text(made.artifact() / "full.gguf"));
    restate_hash(made.artifact(), "level-060.gguf");
    CHECK(refutation(made.artifact(), made.model()) ==
          claim +
              "level-060.gguf: tensor model.layers.1.input_layernorm.weight is there, but the plan leaves "
              "it out");

    // The plan is not the one that the files were made with.
    write_text(level, good);
    restate_hash(made.artifact(), "level-060.gguf");
    CHECK(refutation(made.artifact(), made.model()) == "");
    ElasticPlan other = plan;
    Widths widths = plan.levels[1].widths;
    widths[spec.mlp_space(2)] = 64;
    other.levels[1] = make_level(spec, 0.6, widths);
    fs::remove(made.artifact() / "plan.json");
    save_plan(other, spec, made.artifact() / "plan.json");
    CHECK(refutation(made.artifact(), made.model()) ==
          claim +
              "level-060.gguf: tensor model.layers.2.post_attention_layernorm.weight of the source is "
              "missing");
  }

  TEST_CASE("verify: K-quants encoded by an importance matrix are proved, and refuted without it") {
    const ModelSpec spec = test::make_tiny_spec(
        "llama", {.d_model = 256, .head_dim = 64, .n_kv_heads = 4, .heads_per_group = 1, .d_ff = 512});
    const ElasticFixture made(spec, DType::kF32, plan::Method::kUniform);
    const fs::path measured = made.path() / "measured.gguf", artifact = made.path() / "weighted";
    save_imatrix(test::uneven_imatrix(spec), measured);
    write_artifact(made.reordered(), {.types = {DType::kQ4_K}, .levels = {1.0}, .imatrix = measured.string()},
                   nlohmann::ordered_json::object(), artifact, false);
    CHECK(refutation(artifact, made.model()) == "");
    auto manifest = nlohmann::ordered_json::parse(read_text(artifact / "manifest.json"));
    manifest.erase("imatrices");
    write_text(artifact / "manifest.json", manifest.dump(2));
    fs::remove(artifact / "imatrix.gguf");
    CHECK(refutation(artifact, made.model()).find("reordering and encoding the source again") == 0);
  }

  TEST_CASE(
      "verify: of files only the packed one in its directory is taken, and a full disk refutes nothing") {
    const ElasticFixture made(test::make_tiny_spec("llama"));
    const fs::path packed = made.path() / "packed";
    write_artifact(made.reordered(), {.levels = {}, .packed = true}, nlohmann::ordered_json::object(), packed,
                   false);
    CHECK(refutation(packed / "model.gguf", made.model()) == "");
    fs::copy_file(packed / "model.gguf", made.path() / "model.gguf");
    for (const fs::path& file : {made.artifact() / "level-060.gguf", made.artifact() / "full.gguf",
                                 made.path() / "model.gguf", packed / "plan.json"})
      CHECK_THROWS_WITH_AS(verify(file, made.model(), {}, {}),
                           doctest::Contains("only an artifact's directory can be verified"), UsageError);

    ::setenv("TMPDIR", (made.path() / "model.gguf").c_str(), 1);
    CHECK_THROWS_AS(verify(packed, made.model(), {}, {}), SystemError);
    ::unsetenv("TMPDIR");
  }

  TEST_CASE("verify: what is neither reordered nor an artifact is refused") {
    const ElasticFixture made(test::make_tiny_spec("llama"));
    CHECK_THROWS_WITH_AS(verify(made.model(), made.model(), {}, {}),
                         doctest::Contains("neither a reordered directory nor an artifact"), UsageError);
  }
}

}  // namespace
}  // namespace elastify::pipeline
