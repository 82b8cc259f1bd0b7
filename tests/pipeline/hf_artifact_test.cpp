// Compares levels as Hugging Face directories with the reordered directory's levels: logits, repairs,
// verification.

#include "support/repaired.h"

#include <fstream>

#include "base/hash.h"
#include "pipeline/verify.h"

namespace elastify::pipeline {
namespace {

struct Case {
  const char* family;
  bool biases, weights, adapters;
  bool norm = false, everywhere = false;
};

at::Tensor logits_of(const fs::path& model, const at::Tensor& ids) {
  const c10::NoGradGuard no_gradients;
  const nn::Decoder decoder(Checkpoint::open(model), {});
  return decoder.logits(decoder.hidden(ids)).squeeze(0);
}

std::string refutation(const fs::path& output, const fs::path& model) {
  for (const Finding& finding : verify(output, model, {}, {}))
    if (!finding.holds) return finding.claim + ": " + finding.detail;
  return "";
}

void restate_hash(const fs::path& artifact, const std::string& name) {
  auto manifest = nlohmann::ordered_json::parse(read_text(artifact / "manifest.json"));
  for (auto& file : manifest["files"])
    for (auto& part : file["parts"])
      if (part["name"] == name) part["sha256"] = sha256_file(artifact / name);
  write_text(artifact / "manifest.json", manifest.dump(2));
}

TEST_SUITE("pipeline") {
  TEST_CASE("hf artifact: a level's directory gives the logits of the reordered directory at that level") {
    for (const Case& each :
         {Case{"llama", false, false, false}, Case{"llama", true, true, false},
          Case{"llama", true, false, true}, Case{"mistral", false, false, false},
          Case{"mistral", false, true, false}, Case{"qwen2", false, false, true},
          Case{"qwen3", false, false, false}, Case{"qwen3", false, true, false},
          Case{"qwen3", false, false, true, true}, Case{"llama", true, true, false, true},
          Case{"llama", true, true, true, true, true}, Case{"mistral", false, true, true, true, true},
          Case{"qwen2", false, false, true, false, true}, Case{"qwen3", false, true, true, true, true}}) {
      CAPTURE(each.family);
      CAPTURE(each.biases);
      CAPTURE(each.weights);
      CAPTURE(each.adapters);
      CAPTURE(each.everywhere);
      const test::RepairedFixture made(
          test::make_tiny_spec(each.family), plan::Method::kUniform,
          {each.adapters, each.biases, each.weights, each.norm, each.everywhere});
      write_hf_artifact(made.reordered(), {}, made.artifact(), false);
      const at::Tensor ids = test::random_ids(1, 20, 96);
      for (const double level : {0.6, 0.8, 1.0}) {
        CAPTURE(level);
        const at::Tensor expected = test::repaired_logits(made.reordered(), level, ids);
        CHECK(test::relative_difference(test::repaired_logits(made.artifact(), level, ids), expected) < 1e-5);
        if (!each.adapters) {
          const fs::path alone = made.artifact() / (level < 1 ? level_name(level) : "full");
          CHECK(test::relative_difference(logits_of(alone, ids), expected) < 1e-5);
        }
      }
      CHECK(true_ratio(made.artifact(), 0.6) == true_ratio(made.reordered(), 0.6));
      CHECK(refutation(made.artifact(), made.model()) == "");
    }
  }

  TEST_CASE("hf artifact: verify proves what is stored as f16 and bf16") {
    for (const DType type : {DType::kF16, DType::kBF16}) {
      const test::RepairedFixture made(test::make_tiny_spec("qwen2"), plan::Method::kUniform,
                                       {false, false, true});
      write_hf_artifact(made.reordered(), {.type = type, .levels = {}}, made.artifact(), false);
      CHECK(refutation(made.artifact(), made.model()) == "");
    }
  }

  TEST_CASE(
      "hf artifact: a changed byte is refuted by its hash, and by its value when the hash is restated") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform,
                                     {false, false, false});
    for (const char* name : {"level-060/model.safetensors", "full/model.safetensors"}) {
      CAPTURE(name);
      write_hf_artifact(made.reordered(), {}, made.artifact(), true);
      const fs::path file = made.artifact() / name;
      std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
      stream.seekp(static_cast<std::streamoff>(fs::file_size(file)) - 4);
      stream << "x";
      stream.close();
      CHECK(refutation(made.artifact(), made.model()).find("every file has the hash") == 0);
      restate_hash(made.artifact(), name);
      const std::string found = refutation(made.artifact(), made.model());
      CHECK(found.find(name[0] == 'f' ? "undoing the permutation" : "every level is a prefix") == 0);
      CHECK(found.find("lm_head.weight: row 95") != std::string::npos);
    }
  }

  TEST_CASE("hf artifact: a missing part and an adapter of another shape are refuted") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform,
                                     {true, false, false});
    write_hf_artifact(made.reordered(), {}, made.artifact(), false);
    const std::string config = read_text(made.artifact() / "level-080/config.json");
    fs::remove(made.artifact() / "level-080/config.json");
    CHECK(refutation(made.artifact(), made.model()).find("level-080/config.json: listed in manifest.json") !=
          std::string::npos);
    write_text(made.artifact() / "level-080/config.json", config);
    CHECK(refutation(made.artifact(), made.model()) == "");
    auto manifest = nlohmann::ordered_json::parse(read_text(made.artifact() / "manifest.json"));
    manifest.erase("adapters");
    write_text(made.artifact() / "manifest.json", manifest.dump(2));
    fs::copy_file(made.artifact() / "lora-080/adapter_model.safetensors",
                  made.artifact() / "lora-060/adapter_model.safetensors",
                  fs::copy_options::overwrite_existing);
    const std::string found = refutation(made.artifact(), made.model());
    CHECK(found.find("repairs have the shapes of their levels") == 0);
    CHECK(found.find("lora-060/adapter_model.safetensors") != std::string::npos);
  }
}

}  // namespace
}  // namespace elastify::pipeline
