#include "model/manifest.h"

#include <doctest/doctest.h>

#include <functional>

#include "base/error.h"
#include "support/errors.h"
#include "support/temporary_directory.h"

namespace elastify {
namespace {

using Json = nlohmann::ordered_json;

Manifest gguf_manifest() {
  Manifest manifest;
  manifest.tool_version = "0.0.7";  // of the tool that wrote it, not of this one
  manifest.spec_hash = "abc";
  manifest.permutation_digest = "def";
  manifest.type = "q8_0";
  manifest.configuration = {{"storage", "bf16"}, {"a", {1, 2}}};
  manifest.files = {
      {.name = "full.gguf", .level = 1, .architecture = "llama", .n_params = 7, .sha256 = {}, .parts = {}},
      {.name = "level-050.gguf",
       .level = 0.5,
       .architecture = "deci",
       .decoder_ratio = 0.49,
       .total_ratio = 0.6,
       .n_params = 4,
       .bits_per_weight = 8.5,
       .bytes = uint64_t{1} << 40,
       .sha256 = "12",
       .compensation = "adapter",
       .parts = {}}};
  manifest.adapters = {{.name = "lora-050.gguf",
                        .level = 0.5,
                        .n_params = 3,
                        .ranks = {{"blk.1.b", 2}, {"blk.0.a", 1}},
                        .bytes = 5,
                        .sha256 = "34",
                        .parts = {}}};
  manifest.imatrices = {{.name = "imatrix-050.gguf", .level = 0.5, .bytes = 6, .sha256 = "56"}};
  manifest.common = WrittenFile{.name = "common.gguf", .bytes = 8, .sha256 = "78"};
  return manifest;
}

Manifest hf_manifest() {
  Manifest manifest;
  manifest.huggingface = true;
  manifest.type = "f16";
  manifest.files = {
      {.name = "full", .architecture = "LlamaForCausalLM", .sha256 = {}, .tokenizer = true, .parts = {}}};
  manifest.files[0].parts = {{"full/config.json", 3, "9a"}, {"full/model.safetensors", 4, "bc"}};
  manifest.adapters = {{.name = "lora-050", .level = 0.5, .ranks = {}, .sha256 = {}, .parts = {}}};
  manifest.adapters[0].parts = {{"lora-050/adapter_config.json", 1, "de"}};
  return manifest;
}

Manifest folders_manifest() {
  Manifest manifest;
  manifest.folders = {{"q8_0", "q8_0", "12"}, {"q4_0", "q4_0", "34"}};
  return manifest;
}

std::vector<std::string> keys_of(const Json& json) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  return keys;
}

/// Errors without the path of the file.
std::string refusal(const fs::path& directory, const std::string& text) {
  write_text(directory / "manifest.json", text);
  std::string message = test::message_of([&] { load_manifest(directory); });
  const std::string place = (directory / "manifest.json").string() + ": ";
  REQUIRE(message.starts_with(place));
  return message.substr(place.size());
}

}  // namespace

TEST_CASE("manifest: saving what was loaded gives the same bytes in every layout") {
  const test::TemporaryDirectory directory;
  for (const Manifest& manifest : {gguf_manifest(), hf_manifest(), folders_manifest()}) {
    save_manifest(manifest, directory.path());
    const std::string saved = read_text(directory.path() / "manifest.json");
    save_manifest(load_manifest(directory.path()), directory.path());
    CHECK((read_text(directory.path() / "manifest.json") == saved));
  }
}

TEST_CASE("manifest: keys stand in the order that docs/formats.md has") {
  const test::TemporaryDirectory directory;
  const auto saved = [&](const Manifest& manifest) {
    save_manifest(manifest, directory.path());
    return Json::parse(read_text(directory.path() / "manifest.json"));
  };
  using Keys = std::vector<std::string>;
  const Json gguf = saved(gguf_manifest());
  CHECK((keys_of(gguf) == Keys{"format", "version", "tool", "spec_hash", "permutation_digest", "type",
                               "configuration", "files", "adapters", "imatrices", "common"}));
  CHECK(
      (keys_of(gguf["files"][1]) == Keys{"name", "level", "architecture", "decoder_ratio", "total_ratio",
                                         "n_params", "bits_per_weight", "bytes", "sha256", "compensation"}));
  CHECK((keys_of(gguf["adapters"][0]) == Keys{"name", "level", "n_params", "ranks", "bytes", "sha256"}));
  CHECK((keys_of(gguf["adapters"][0]["ranks"]) == Keys{"blk.1.b", "blk.0.a"}));
  const Json hf = saved(hf_manifest());
  CHECK((keys_of(hf) == Keys{"format", "version", "tool", "spec_hash", "permutation_digest", "layout", "type",
                             "configuration", "files", "adapters"}));
  CHECK((keys_of(hf["files"][0]) == Keys{"name", "level", "architecture", "decoder_ratio", "total_ratio",
                                         "n_params", "bytes", "tokenizer", "compensation", "parts"}));
  CHECK((keys_of(hf["adapters"][0]) == Keys{"name", "level", "n_params", "bytes", "parts"}));
  CHECK((keys_of(saved(folders_manifest())) ==
         Keys{"format", "version", "tool", "spec_hash", "permutation_digest", "folders"}));
}

TEST_CASE("manifest: entries are found by their nominal level") {
  const Manifest manifest = gguf_manifest();
  REQUIRE(manifest.model_at(0.5) != nullptr);
  CHECK(manifest.model_at(0.5)->name == "level-050.gguf");
  CHECK(manifest.model_at(0.1 + 0.4)->name == "level-050.gguf");
  CHECK(manifest.adapter_at(0.5)->name == "lora-050.gguf");
  CHECK(manifest.imatrix_at(1) == nullptr);
  CHECK(manifest.model_at(0.6) == nullptr);
  CHECK(manifest.storage() == "bf16");
  CHECK(test::message_of([] { hf_manifest().storage(); }) ==
        "manifest.json: configuration: storage: missing");
}

TEST_CASE("manifest: those of several types come with their folders") {
  const test::TemporaryDirectory directory;
  save_manifest(folders_manifest(), directory.path());
  for (const char* folder : {"q8_0", "q4_0"}) {
    fs::create_directory(directory.path() / folder);
    save_manifest(gguf_manifest(), directory.path() / folder);
  }
  const auto several = load_manifests(directory.path());
  REQUIRE(several.size() == 2);
  CHECK(several[0].first == "q8_0/");
  CHECK(several[1].first == "q4_0/");
  CHECK(several[1].second.files.size() == 2);
  const auto one = load_manifests(directory.path() / "q8_0");
  REQUIRE(one.size() == 1);
  CHECK(one[0].first == "");
}

TEST_CASE("manifest: a wrong file is refused by file and key") {
  const test::TemporaryDirectory directory;
  save_manifest(gguf_manifest(), directory.path());
  const Json good = Json::parse(read_text(directory.path() / "manifest.json"));
  const auto changed = [&](const std::function<void(Json&)>& change) {
    Json json = good;
    change(json);
    return refusal(directory.path(), json.dump());
  };
  CHECK(refusal(directory.path(), "{").starts_with("not valid JSON"));
  CHECK(refusal(directory.path(), "[]") == "expected a JSON object, got a list of 0");
  CHECK(refusal(directory.path(), "{}") == "format: missing");
  CHECK(changed([](Json& json) { json["format"] = "x"; }) ==
        R"(format: expected "elastify.artifact", got "x")");
  CHECK(changed([](Json& json) { json["version"] = 2; }) == "version: 2 is not supported; supported is 1");
  CHECK(changed([](Json& json) { json["layout"] = "x"; }) == R"(layout: expected "huggingface", got "x")");
  CHECK(changed([](Json& json) { json.erase("files"); }) == "files: missing");
  CHECK(changed([](Json& json) { json["files"] = 3; }) == "files: expected a list, got 3");
  CHECK(changed([](Json& json) { json["files"][1].erase("level"); }) == "files[1]: level: missing");
  CHECK(changed([](Json& json) { json["files"][1]["bytes"] = -1; }) ==
        "files[1]: bytes: expected 0 or more, got -1");
  CHECK(changed([](Json& json) { json["adapters"][0]["ranks"]["blk.0.a"] = "x"; }) ==
        R"(adapters[0]: ranks: blk.0.a: expected an integer, got "x")");
  CHECK(changed([](Json& json) { json["imatrices"][0]["sha256"] = 1; }) ==
        "imatrices[0]: sha256: expected a string, got 1");
  CHECK(changed([](Json& json) { json["common"].erase("name"); }) == "common: name: missing");
  CHECK(changed([](Json& json) { json["folders"] = {{{"name", "a"}}}; }) == "folders[0]: type: missing");
}

}  // namespace elastify
