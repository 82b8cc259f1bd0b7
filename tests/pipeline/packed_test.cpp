// Compares packed artifacts and splits with common embeddings with the plain files of the same export, byte
// for byte.

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/hash.h"
#include "export/slice.h"
#include "pipeline/artifact.h"
#include "pipeline/reorder_model.h"
#include "pipeline/verify.h"
#include "support/elastic_fixture.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/repaired.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify::pipeline {
namespace {

using exporter::ExportOptions;
using exporter::PackedFile;

fs::path exported(const fs::path& reordered, const fs::path& output, ExportOptions options) {
  write_artifact(reordered, options, nlohmann::ordered_json::object(), output, true);
  return output;
}

std::set<std::string> names_in(const fs::path& directory, const std::string& extension = ".gguf") {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().extension() == extension) names.insert(entry.path().filename().string());
  return names;
}

/// Exports packed, unpacks, and compares every file with the plain export's.
/// \returns the number of files
size_t check_round_trip(const fs::path& reordered, DType type, const fs::path& work) {
  const fs::path plain = exported(reordered, work / "plain", {.types = {type}, .levels = {}});
  const fs::path packed =
      exported(reordered, work / "packed", {.types = {type}, .levels = {}, .packed = true});
  CHECK((names_in(packed) == std::set<std::string>{"model.gguf"}));
  CHECK((names_in(packed, ".json") == names_in(plain, ".json")));
  fs::remove_all(work / "out");
  fs::create_directory(work / "out");
  exporter::unpack(PackedFile::open(packed / "model.gguf"), work / "out");
  CHECK((names_in(work / "out") == names_in(plain)));
  for (const std::string& name : names_in(plain)) {
    CAPTURE(name);
    CHECK((read_text(plain / name) == read_text(work / "out" / name)));
  }
  return names_in(plain).size();
}

std::string refutation(const fs::path& output, const fs::path& model) {
  for (const Finding& finding : verify(output, model, {}, {}))
    if (!finding.holds) return finding.claim + ": " + finding.detail;
  return "";
}

void flip(const fs::path& file, uint64_t offset) {
  std::string bytes = read_text(file);
  bytes.at(offset) = static_cast<char>(bytes.at(offset) ^ 0x10);
  test::write_bytes(file, bytes);
}

/// Updates the hash of model.gguf in the manifest.
void restate_hash(const fs::path& artifact) {
  auto manifest = nlohmann::ordered_json::parse(read_text(artifact / "manifest.json"));
  manifest["packed"]["sha256"] = sha256_file(artifact / "model.gguf");
  write_text(artifact / "manifest.json", manifest.dump(2));
}

const test::TinyOptions kWide{.head_dim = 32, .d_ff = 128};

}  // namespace

TEST_SUITE("pipeline") {
  TEST_CASE("packed: slicing gives the very files that exporting writes, every family, by layer or not") {
    size_t n_families = 0, n_openelm = 0;
    for (const auto& variant : test::tiny_variants()) {
      if (variant.spec.qk_norm && variant.spec.qkv_bias) continue;
      for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
        if (variant.spec.qk_norm && !variant.spec.tied && method == plan::Method::kAnchors) continue;
        CAPTURE(variant.name);
        const test::ElasticFixture made(variant.spec, DType::kF32, method);
        for (const DType type : {DType::kF32, DType::kF16})
          CHECK(check_round_trip(made.reordered(), type, made.path()) == 3);
        const PackedFile packed = PackedFile::open(made.path() / "packed/model.gguf");
        for (const auto& level : packed.levels()) n_openelm += level.architecture == "openelm" ? 1 : 0;
        ++n_families;
      }
    }
    CHECK(n_families == 18);
    CHECK(n_openelm > 0);
  }

  TEST_CASE("packed: the same in q8_0, and where levels leave out attention and layers") {
    for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
      CAPTURE(family);
      test::TinyOptions options = kWide;
      options.tied = true;
      const test::ElasticFixture made(test::make_tiny_spec(family, options), DType::kQ8_0,
                                      plan::Method::kAnchors);
      CHECK(check_round_trip(made.reordered(), DType::kQ8_0, made.path()) == 3);
    }
    const ModelSpec deep = test::make_tiny_spec("qwen2", {.n_layers = 4});
    const test::ElasticFixture made(deep, test::shallow_plan(deep));
    CHECK(check_round_trip(made.reordered(), DType::kF16, made.path()) == 3);
  }

  TEST_CASE("packed: the same with adapters, biases, own weights and norms, which are all that levels add") {
    for (const char* family : {"llama", "qwen2", "qwen3"})
      for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors})
        for (const bool baked : {false, true}) {
          const ModelSpec spec = test::make_tiny_spec(family, {.tied = true});
          CAPTURE(family);
          CAPTURE(baked);
          const test::RepairedFixture made(spec, method, {!baked, !spec.qk_norm, baked, true});
          const test::TemporaryDirectory work;
          for (const DType type : {DType::kF32, DType::kF16})
            CHECK(check_round_trip(made.reordered(), type, work.path()) == (baked ? 3 : 5));
          const PackedFile packed = PackedFile::open(work / "packed/model.gguf");
          for (const auto& level : packed.levels()) {
            if (!level.part) continue;
            CHECK(level.adapter.has_value() == !baked);
            const exporter::LevelPart part = packed.part_of(level);
            for (const TensorInfo& own : part.file.tensors()) {
              CAPTURE(own.name);
              const bool weight =
                  own.name.ends_with("attn_output.weight") || own.name.ends_with("ffn_down.weight");
              CHECK((own.name.ends_with(".bias") || own.name == "output_norm.weight" || (baked && weight)));
            }
          }
        }
  }

  TEST_CASE("packed: the same with repairs of every matrix and norm, where q, k and v are one tensor, too") {
    for (const char* family : {"llama", "qwen2", "qwen3"})
      for (const auto method : {plan::Method::kUniform, plan::Method::kDp})
        for (const bool baked : {false, true}) {
          const ModelSpec spec = test::make_tiny_spec(family, {.tied = true});
          CAPTURE(family);
          CAPTURE(baked);
          const test::RepairedFixture made(spec, method, {!baked, !spec.qk_norm, baked, true, true});
          const test::TemporaryDirectory work;
          for (const DType type : {DType::kF32, DType::kF16})
            CHECK(check_round_trip(made.reordered(), type, work.path()) == (baked ? 3 : 5));
        }
  }

  TEST_CASE("packed: one level's bytes are shared with the full model's, not stored again") {
    const test::ElasticFixture made(test::make_tiny_spec("qwen3", {.tied = true}), DType::kF16,
                                    plan::Method::kAnchors);
    const fs::path packed = exported(made.reordered(), made.path() / "p", {.levels = {}, .packed = true});
    const PackedFile file = PackedFile::open(packed / "model.gguf");
    CHECK(file.embedded().size() == 2);
    for (const auto& level : file.levels())
      if (level.part) CHECK(file.part_of(level).file.tensors().empty());
    CHECK(file.levels().back().part.has_value() == false);
    const Checkpoint full = Checkpoint::open(packed / "model.gguf");  // ignores trailing bytes
    CHECK(full.spec().is_uniform());
  }

  TEST_CASE("packed: a merged adapter is W + alpha / rank B A, in float32, then in the file's type") {
    for (const auto& [family, everywhere] :
         {std::pair{"llama", false}, {"qwen3", false}, {"llama", true}, {"qwen2", true}, {"qwen3", true}}) {
      const ModelSpec spec = test::make_tiny_spec(family, {.tied = true});
      const test::RepairedFixture made(spec, plan::Method::kDp, {true, false, false, true, everywhere});
      const test::TemporaryDirectory work;
      const fs::path packed =
          exported(made.reordered(), work / "packed",
                   {.types = {DType::kF32}, .levels = {}, .adapter_type = DType::kF32, .packed = true});
      const PackedFile file = PackedFile::open(packed / "model.gguf");
      for (const double level : {0.6, 0.8}) {
        CAPTURE(family);
        CAPTURE(everywhere);
        CAPTURE(level);
        exporter::slice_merged(file, file.level(level), work / "merged.gguf");
        const GgufFile merged = GgufFile::open(work / "merged.gguf");
        CHECK(merged.metadata().string("elastify.repairs") == "baked+norm");
        CHECK(merged.metadata().boolean("elastify.merged_adapter") == true);
        const auto* own = merged.metadata().strings("elastify.own_tensors");
        CHECK((own != nullptr) == everywhere);
        // The level's file lists its own norms; the merge adds the matrices.
        for (const char* name : {"blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight"})
          CHECK((!everywhere || std::count(own->begin(), own->end(), name) == 1));
        const at::Tensor ids = test::random_ids(1, 16, spec.n_vocab, 3);
        const at::Tensor expected = test::repaired_logits(made.reordered(), level, ids);
        const c10::NoGradGuard no_gradients;
        const nn::Decoder decoder(Checkpoint::open(work / "merged.gguf"), {});
        const at::Tensor found = decoder.logits(decoder.hidden(ids, {})).squeeze(0);
        CHECK((expected - found).abs().max().item<double>() < 1e-4 * expected.std().item<double>());
        CHECK((expected - test::repaired_logits(made.reordered(), level, ids, false))
                  .abs()
                  .max()
                  .item<double>() > 0.1 * expected.std().item<double>());
      }
      const fs::path halves =
          exported(made.reordered(), work / "f16",
                   {.types = {DType::kF16}, .levels = {}, .adapter_type = DType::kF32, .packed = true});
      exporter::slice_merged(PackedFile::open(halves / "model.gguf"),
                             PackedFile::open(halves / "model.gguf").level(0.6), work / "merged16.gguf");
      CHECK(GgufFile::open(work / "merged16.gguf").tensor("blk.1.ffn_down.weight").dtype == DType::kF16);
    }
  }

  TEST_CASE("packed: eval reads levels and their repairs out of one file as out of many") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const test::RepairedFixture made(spec, plan::Method::kAnchors, {true, true, false, true});
    const test::TemporaryDirectory work;
    const fs::path plain = exported(made.reordered(), work / "plain", {.levels = {}});
    const fs::path packed = exported(made.reordered(), work / "packed", {.levels = {}, .packed = true});
    const fs::path shared =
        exported(made.reordered(), work / "shared", {.levels = {}, .shared_common = true});
    const at::Tensor ids = test::random_ids(1, 16, spec.n_vocab, 3);
    for (const double level : {0.6, 0.8, 1.0}) {
      const at::Tensor expected = test::repaired_logits(plain, level, ids);
      for (const fs::path& other : {packed, packed / "model.gguf", shared}) {
        CAPTURE(other.string());
        CHECK(at::equal(expected, test::repaired_logits(other, level, ids)));
        CHECK(true_ratio(other, level) == true_ratio(plain, level));
      }
    }
    CHECK_THROWS_WITH_AS(open_model(packed, {}, 0.5), doctest::Contains("no level 0.5"), UsageError);
    CHECK(fs::is_empty(work.path()) == false);
  }

  TEST_CASE("packed: what cannot be sliced is refused, with a way out") {
    const test::ElasticFixture made(test::make_tiny_spec("llama"));
    const fs::path packed = exported(made.reordered(), made.path() / "p", {.levels = {}, .packed = true});
    const PackedFile file = PackedFile::open(packed / "model.gguf");
    CHECK(test::hint_of([&] { file.level(0.5); }) == "it holds 0.6, 0.8, 1");
    CHECK(test::message_of([&] {
            exporter::slice_merged(file, file.level(0.6), made.path() / "x.gguf");
          }).find("level 0.6 has no adapter") != std::string::npos);
    CHECK(test::message_of([&] {
            PackedFile::open(made.artifact() / "full.gguf");
          }).find("not a packed file: key elastify.packed.version is missing") != std::string::npos);
    CHECK_THROWS_AS(exported(made.reordered(), made.path() / "both",
                             {.levels = {}, .packed = true, .shared_common = true}),
                    UsageError);
    CHECK_FALSE(fs::exists(made.path() / "both"));

    // A changed byte of a tensor makes the level's hash wrong, and no output remains.
    const uint64_t offset = static_cast<uint64_t>(file.model().tensor("blk.0.ffn_up.weight").bytes.data() -
                                                  file.model().file()->bytes().data());
    flip(packed / "model.gguf", offset);
    const PackedFile damaged = PackedFile::open(packed / "model.gguf");
    CHECK(test::message_of([&] {
            exporter::slice(damaged, damaged.level(0.6), made.path() / "x.gguf");
          }).find("expected sha256") != std::string::npos);
    CHECK_FALSE(fs::exists(made.path() / "x.gguf"));
  }

  TEST_CASE("packed: verify proves packed artifacts and splits of every family") {
    for (const auto& variant : test::tiny_variants()) {
      if (variant.spec.qk_norm && variant.spec.qkv_bias) continue;
      CAPTURE(variant.name);
      const test::ElasticFixture made(variant.spec);
      CHECK(refutation(exported(made.reordered(), made.path() / "p", {.levels = {}, .packed = true}),
                       made.model()) == "");
      CHECK(refutation(exported(made.reordered(), made.path() / "s", {.levels = {}, .shared_common = true}),
                       made.model()) == "");
    }
    for (const bool baked : {false, true}) {
      const test::RepairedFixture made(test::make_tiny_spec("qwen2"), plan::Method::kAnchors,
                                       {!baked, true, baked, true});
      const test::TemporaryDirectory work;
      for (const bool packed : {true, false}) {
        const auto findings = verify(exported(made.reordered(), work / "a",
                                              {.levels = {}, .packed = packed, .shared_common = !packed}),
                                     made.model(), {}, {});
        for (const Finding& finding : findings) CHECK_MESSAGE(finding.holds, finding.claim << finding.detail);
        CHECK(findings.size() == (packed ? 8 : 7) - (baked ? 1 : 0));
      }
    }
  }

  TEST_CASE(
      "packed: verify finds a flipped byte anywhere in embedded files, with the manifest restated too") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kAnchors,
                                     {true, true, false});
    const test::TemporaryDirectory work;
    const fs::path artifact = exported(made.reordered(), work / "a", {.levels = {}, .packed = true});
    const fs::path model = artifact / "model.gguf";
    const std::string good = read_text(model), manifest = read_text(artifact / "manifest.json");
    const std::vector<exporter::EmbeddedFile> embedded = PackedFile::open(model).embedded();
    CHECK(embedded.size() == 4);
    const std::string claim = "every level comes out of the packed file with the hash that it states: ";
    for (const exporter::EmbeddedFile& file : embedded)
      for (const uint64_t at : {uint64_t{0}, uint64_t{70}, file.bytes / 2, file.bytes - 1}) {
        CAPTURE(file.name);
        CAPTURE(at);
        test::write_bytes(model, good);
        flip(model, file.offset + at);
        restate_hash(artifact);
        CHECK(refutation(artifact, made.model()).find(claim) == 0);
      }
    // Padding between the files belongs to no level, so only the packed file's own hash covers it.
    test::write_bytes(model, good);
    write_text(artifact / "manifest.json", manifest);
    CHECK(refutation(artifact, made.model()) == "");
    const uint64_t gap = embedded[0].offset + embedded[0].bytes;
    if (gap < embedded[1].offset) {
      flip(model, gap);
      CHECK(refutation(artifact, made.model())
                .find("every file has the hash that the manifest states: model.gguf") == 0);
    }
  }

  TEST_CASE("packed: mutations of a packed file are read or refused, never worse") {
    const test::RepairedFixture made(
        test::make_tiny_spec("qwen2", {.n_layers = 1, .d_model = 8, .n_vocab = 8}), plan::Method::kUniform,
        {true, true, false});
    const test::TemporaryDirectory work;
    const fs::path artifact = exported(made.reordered(), work / "a", {.levels = {}, .packed = true});
    const auto count =
        test::read_mutations(read_text(artifact / "model.gguf"), 1500, [&](const fs::path& path) {
          const PackedFile packed = PackedFile::open(path);
          for (const auto& level : packed.levels()) exporter::slice(packed, level, work / "level.gguf");
        });
    CHECK(count.refused > 1000);
  }

  TEST_CASE("shared-common: embeddings are stored once, and a split opens as one model") {
    const test::ElasticFixture made(test::make_tiny_spec("qwen2"), DType::kF32, plan::Method::kAnchors);
    const fs::path plain = made.artifact();
    const fs::path shared = exported(made.reordered(), made.path() / "s",
                                     {.types = {DType::kF32}, .levels = {}, .shared_common = true});
    CHECK((names_in(shared) ==
           std::set<std::string>{"common.gguf", "full-00001-of-00002.gguf", "full-00002-of-00002.gguf",
                                 "level-060-00001-of-00002.gguf", "level-060-00002-of-00002.gguf",
                                 "level-080-00001-of-00002.gguf", "level-080-00002-of-00002.gguf"}));
    CHECK(fs::read_symlink(shared / "level-060-00002-of-00002.gguf") == "common.gguf");
    const GgufFile common = GgufFile::open(shared / "common.gguf");
    CHECK(common.tensors().size() == 2);  // the output norm may be a level's own
    for (const std::string name : {"full", "level-060", "level-080"}) {
      const GgufFile expected = GgufFile::open(plain / (name + ".gguf")),
                     found = GgufFile::open(shared / (name + "-00001-of-00002.gguf"));
      CHECK(found.tensors().size() == expected.tensors().size());
      for (const TensorInfo& tensor : expected.tensors())
        CHECK(test::same_bytes(found.tensor(tensor.name), expected.tensor(tensor.name)));
      CHECK(found.paths().size() == 2);
    }
    CHECK(test::message_of([&] { Checkpoint::open(shared / "full-00002-of-00002.gguf"); }) != "no error");
    fs::remove(shared / "full-00002-of-00002.gguf");
    CHECK(test::message_of([&] {
            Checkpoint::open(shared / "full-00001-of-00002.gguf");
          }).find("full-00002-of-00002.gguf: cannot open") != std::string::npos);
    fs::copy_file(plain / "full.gguf", shared / "full-00002-of-00002.gguf");
    CHECK(test::message_of([&] { Checkpoint::open(shared / "full-00001-of-00002.gguf"); }).find("split.no") !=
          std::string::npos);
  }
}

}  // namespace elastify::pipeline
