#include "export/weight_type.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "io/gguf.h"
#include "support/errors.h"
#include "support/exported_model.h"

namespace elastify {
namespace {

using test::blocks_spec;
using test::check_file_prefixes;
using test::uneven_plan;
using Json = nlohmann::ordered_json;
using Model = test::ExportedModel;

}  // namespace

TEST_CASE("export: in every type, and in mixtures, levels are byte prefixes of the full file's rows") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  for (const exporter::WeightType& type : exporter::all_weight_types()) {
    CAPTURE(type.name());
    const fs::path target = model.make(std::string(type.name()));
    const auto files = model.to(target, uneven_plan(spec, 256), {.types = {type}, .levels = {}});
    for (const auto& file : files) check_file_prefixes(target / file.name, target / "full.gguf");
    const GgufFile full = GgufFile::open(target / "full.gguf");
    CHECK(full.metadata().require_integer("general.file_type") == type.file_type());
    CHECK(full.metadata().contains("general.quantization_version") != type.is_float());
    double bits = 0;
    for (const TensorInfo& tensor : full.tensors())
      bits += 8 * static_cast<double>(n_bytes(tensor.dtype, tensor.shape));
    CHECK(files[0].bits_per_weight == doctest::Approx(bits / static_cast<double>(files[0].n_params)));
  }
}

TEST_CASE("export: mixtures give the output, and attn_v and ffn_down of some layers, more bits") {
  ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 16});
  const exporter::WeightType mixture = exporter::weight_type_named("q4_k_m");
  const auto type = [&](Role role, int64_t layer, bool fused = false) {
    return mixture.of(spec.tensors[static_cast<size_t>(spec.find(role, layer))], spec, fused);
  };
  std::vector<int64_t> more;
  for (int64_t layer = 0; layer < 16; ++layer) {
    if (type(Role::kDown, layer) == DType::kQ6_K) more.push_back(layer);
    CHECK((type(Role::kValue, layer) == type(Role::kDown, layer)));
    CHECK((type(Role::kValue, layer, true) == DType::kQ4_K));
    for (const Role role : {Role::kQuery, Role::kKey, Role::kAttnOut, Role::kGate, Role::kUp})
      CHECK((type(role, layer) == DType::kQ4_K));
    CHECK((type(Role::kAttnNorm, layer) == DType::kF32));
  }
  CHECK(more == std::vector<int64_t>{0, 1, 4, 7, 10, 13, 14, 15});
  CHECK((type(Role::kOutput, -1) == DType::kQ6_K));
  CHECK((type(Role::kTokenEmbedding, -1) == DType::kQ4_K));
  spec = test::make_tiny_spec("llama", {.tied = true});
  CHECK((type(Role::kTokenEmbedding, -1) == DType::kQ6_K));
}

TEST_CASE("export: several types are written in one pass, each as the artifact that it would be alone") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  const fs::path both = model.make("both");
  const auto types = exporter::weight_types_named("q8_0,q4_k_m");
  const auto files = model.to(both, uneven_plan(spec, 256), {.types = types, .levels = {}});
  CHECK(files.size() == 6);
  const Json manifest = Json::parse(read_text(both / "manifest.json"));
  REQUIRE(manifest.at("folders").size() == 2);
  for (size_t i = 0; i < types.size(); ++i) {
    const std::string name(types[i].name());
    CAPTURE(name);
    const fs::path alone = model.make("alone " + name);
    model.to(alone, uneven_plan(spec, 256), {.types = {types[i]}, .levels = {}});
    CHECK(manifest.at("folders")[i].at("name") == name);
    CHECK(manifest.at("folders")[i].at("manifest_sha256") == sha256_file(both / name / "manifest.json"));
    for (const auto& entry : fs::directory_iterator(alone))
      CHECK(sha256_file(entry.path()) == sha256_file(both / name / entry.path().filename()));
  }
  CHECK(test::message_of([] { exporter::weight_types_named("q8_0,q8_0"); }) == "type 'q8_0' is listed twice");
  CHECK(test::message_of([] { exporter::weight_types_named("q8_0,q9"); }) == "unknown type 'q9'");
}

TEST_CASE("export: memory that is bounded gives the same bytes, and too little is refused") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  const auto digest_with = [&](const std::string& name, int64_t max_ram) {
    const fs::path target = model.make(name);
    const auto files =
        model.to(target, uneven_plan(spec, 256), {.types = {DType::kQ4_K}, .levels = {}, .max_ram = max_ram});
    return files.back().sha256;
  };
  CHECK(digest_with("bounded", int64_t{1} << 30) == digest_with("unbounded", 0));
  CHECK(test::message_of([&] { digest_with("refused", 1 << 20); }).starts_with("max-ram: "));
  CHECK(fs::is_empty(model.directory / "refused"));
}

}  // namespace elastify
