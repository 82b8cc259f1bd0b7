// Checks every file that export writes against the rules of stock llama.cpp: what its loaders refuse, and
// what its graphs compute wrongly. The rules are stated independently of our writers, from llama.cpp's
// sources:
//   src/llama-model.cpp load_hparams(), src/models/*.cpp, src/llama-adapter.cpp, ggml/src/gguf.cpp.
// Levels that no file can hold are refused earlier: tests/export/architecture_test.cpp.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "export/slice.h"
#include "io/gguf.h"
#include "support/elastic_fixture.h"
#include "support/repaired.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

template <typename T>
bool holds(const GgufMetadata& keys, const std::string& key) {
  const GgufValue* value = keys.find(key);
  return value != nullptr && std::holds_alternative<T>(*value);
}

/// A width key: one u32 for all layers, or i32 by layer.
std::vector<int64_t> by_layer(const GgufMetadata& keys, const std::string& key, int64_t n_layers) {
  CAPTURE(key);
  if (holds<uint32_t>(keys, key))
    return std::vector<int64_t>(static_cast<size_t>(n_layers), keys.require_integer(key));
  REQUIRE(holds<GgufArray>(keys, key));
  const auto& values = std::get<GgufArray>(*keys.find(key)).values;
  const auto* widths = std::get_if<std::vector<int32_t>>(&values);
  REQUIRE((widths != nullptr));
  REQUIRE(widths->size() == static_cast<size_t>(n_layers));
  return {widths->begin(), widths->end()};
}

struct Model {
  std::string architecture;
  int64_t n_layers, d_model, head_dim;
  std::vector<int64_t> heads, kv_heads, d_ff;
};

Model check_keys(const GgufMetadata& keys) {
  const std::string a = keys.require_string("general.architecture");
  CHECK((std::set<std::string>{"llama", "deci", "qwen2", "qwen3", "openelm"}.contains(a)));
  for (const char* key : {".block_count", ".context_length", ".embedding_length", ".attention.key_length",
                          ".attention.value_length", ".rope.dimension_count"})
    REQUIRE_MESSAGE(holds<uint32_t>(keys, a + key), key);
  for (const char* key : {".attention.layer_norm_rms_epsilon", ".rope.freq_base"})
    REQUIRE_MESSAGE(holds<float>(keys, a + key), key);
  REQUIRE(holds<std::string>(keys, "tokenizer.ggml.model"));
  if (keys.require_string("tokenizer.ggml.model") == "no_vocab")
    CHECK(holds<uint32_t>(keys, a + ".vocab_size"));
  for (const auto& [key, value] : keys.entries())  // keys of another architecture are silently ignored
    for (const char* other : {"llama.", "deci.", "qwen2.", "qwen3.", "openelm."})
      CHECK_FALSE_MESSAGE((key.starts_with(other) && other != a + "."), key);
  if (keys.contains("general.alignment")) {
    REQUIRE(holds<uint32_t>(keys, "general.alignment"));
    CHECK(keys.require_integer("general.alignment") >= 32);
  }
  Model model{.architecture = a,
              .n_layers = keys.require_integer(a + ".block_count"),
              .d_model = keys.require_integer(a + ".embedding_length"),
              .head_dim = keys.require_integer(a + ".attention.key_length"),
              .heads = {},
              .kv_heads = {},
              .d_ff = {}};
  CHECK(model.n_layers <= 512);
  CHECK(keys.require_integer(a + ".attention.value_length") == model.head_dim);
  CHECK(keys.require_integer(a + ".rope.dimension_count") == model.head_dim);
  model.heads = by_layer(keys, a + ".attention.head_count", model.n_layers);
  model.kv_heads = by_layer(keys, a + ".attention.head_count_kv", model.n_layers);
  model.d_ff = by_layer(keys, a + ".feed_forward_length", model.n_layers);
  return model;
}

void check_widths(const Model& model) {
  const bool by_layer = model.architecture == "deci" || model.architecture == "openelm";
  CHECK(model.heads.front() > 0);  // the size of a head is read from layer 0
  CHECK(model.d_ff.back() > 0);    // the last layer's MLP selects rows of the output
  for (size_t i = 0; i < model.heads.size(); ++i) {
    CAPTURE(i);
    CHECK((model.heads[i] == 0) == (model.kv_heads[i] == 0));
    if (model.heads[i] > 0) {
      CHECK(model.heads[i] % model.kv_heads[i] == 0);
      CHECK(model.d_ff[i] > 0);  // without neurons, its attention would be ignored
    } else {
      CHECK(model.architecture == "deci");
    }
    if (by_layer) continue;
    CHECK(model.heads[i] == model.heads[0]);
    CHECK(model.kv_heads[i] == model.kv_heads[0]);
    CHECK(model.d_ff[i] == model.d_ff[0]);
  }
  if (model.architecture == "qwen2") CHECK(model.heads[0] * model.head_dim == model.d_model);
}

/// The shape of every tensor that the architecture's loader accepts, by name; second: whether it may be
/// missing.
std::map<std::string, std::pair<Shape, bool>> loadable(const Model& model, int64_t n_vocab, bool part) {
  std::map<std::string, std::pair<Shape, bool>> all;
  const int64_t d = model.d_model, hd = model.head_dim;
  const bool fused = model.architecture == "openelm", norms = fused || model.architecture == "qwen3";
  const bool biases = !norms, more_biases = model.architecture == "llama" || model.architecture == "deci";
  all["token_embd.weight"] = {{n_vocab, d}, part};
  all["output_norm.weight"] = {{d}, part};
  if (!fused) all["output.weight"] = {{n_vocab, d}, true};
  if (more_biases) all["rope_freqs.weight"] = {{hd / 2}, true};
  for (int64_t layer = 0; layer < model.n_layers; ++layer) {
    const auto i = static_cast<size_t>(layer);
    const int64_t q = model.heads[i] * hd, kv = model.kv_heads[i] * hd, ff = model.d_ff[i];
    const std::string blk = fmt::format("blk.{}.", layer);
    const auto matrix = [&](const char* name, int64_t out, int64_t in, bool bias) {
      all[blk + name + ".weight"] = {{out, in}, false};
      if (bias) all[blk + name + ".bias"] = {{out}, true};
    };
    if (q > 0) {
      all[blk + "attn_norm.weight"] = {{d}, false};
      if (fused) {
        matrix("attn_qkv", q + 2 * kv, d, false);
      } else {
        matrix("attn_q", q, d, biases);
        matrix("attn_k", kv, d, biases);
        matrix("attn_v", kv, d, biases);
      }
      matrix("attn_output", d, q, more_biases);
      for (const char* name : {"attn_q_norm.weight", "attn_k_norm.weight"})
        if (norms) all[blk + name] = {{hd}, false};
    }
    if (ff == 0) continue;
    all[blk + "ffn_norm.weight"] = {{d}, false};
    matrix("ffn_gate", ff, d, more_biases);
    matrix("ffn_up", ff, d, more_biases);
    matrix("ffn_down", d, ff, more_biases);
  }
  return all;
}

/// \param part  whether the file is the first part of a split, without the tensors of common.gguf
void check_tensors(const GgufFile& file, const Model& model, int64_t n_vocab, bool part) {
  const auto known = loadable(model, n_vocab, part);
  const std::byte* expected = nullptr;
  for (const TensorInfo& tensor : file.tensors()) {
    CAPTURE(tensor.name);
    REQUIRE(known.contains(tensor.name));  // "wrong number of tensors"
    CHECK((tensor.shape == known.at(tensor.name).first));
    CHECK(tensor.name.size() < 64);
    CHECK(tensor.shape.size() <= 4);
    if (tensor.shape.size() == 1) CHECK((tensor.dtype == DType::kF32));
    CHECK(tensor.shape.back() % info(tensor.dtype).block_size == 0);
    const HostTensor data = file.tensor(tensor.name);
    if (!part && expected != nullptr) CHECK((data.bytes.data() == expected));  // no gaps
    expected = data.bytes.data() + (data.bytes.size() + 31) / 32 * 32;
  }
  for (const auto& [name, rule] : known) CHECK_MESSAGE((rule.second || file.contains(name)), name);
}

void check_adapter(const GgufFile& adapter, const GgufFile& base) {
  const GgufMetadata& keys = adapter.metadata();
  CHECK(keys.require_string("general.type") == "adapter");
  CHECK(keys.require_string("adapter.type") == "lora");
  CHECK(keys.require_string("general.architecture") ==
        base.metadata().require_string("general.architecture"));
  CHECK(holds<float>(keys, "adapter.lora.alpha"));  // llama.cpp aborts on a u32
  CHECK(adapter.tensors().size() % 2 == 0);
  for (const TensorInfo& tensor : adapter.tensors()) {
    CAPTURE(tensor.name);
    const size_t dot = tensor.name.rfind('.');
    const std::string name = tensor.name.substr(0, dot), half = tensor.name.substr(dot);
    REQUIRE((half == ".lora_a" || half == ".lora_b"));
    REQUIRE(adapter.contains(name + (half == ".lora_a" ? ".lora_b" : ".lora_a")));
    REQUIRE(base.contains(name));
    CHECK(name.find("norm") == std::string::npos);        // silently ignored
    CHECK(name.find("token_embd") == std::string::npos);  // aborts if the output is tied
    const Shape shape = base.tensor(name).shape;
    CHECK(tensor.shape[half == ".lora_a" ? 1 : 0] == shape[half == ".lora_a" ? 1 : 0]);
    CHECK(adapter.tensor(name + ".lora_a").shape[0] == adapter.tensor(name + ".lora_b").shape[1]);
  }
}

/// \returns the number of models
size_t check_artifact(const fs::path& artifact, const ModelSpec& spec) {
  size_t n_models = 0;
  const auto manifest = nlohmann::json::parse(read_text(artifact / "manifest.json"));
  for (const auto& entry : manifest.at("files")) {
    const fs::path path = artifact / entry.at("name").get<std::string>();
    CAPTURE(path.string());
    const bool part = path.stem().string().ends_with("-00001-of-00002");
    const GgufFile file = GgufFile::open(path);
    const Model model = check_keys(file.metadata());
    check_widths(model);
    check_tensors(file, model, spec.n_vocab, part);
    if (part) {
      CHECK(holds<uint16_t>(file.metadata(), "split.no"));
      CHECK(holds<uint16_t>(file.metadata(), "split.count"));
      REQUIRE(holds<int32_t>(file.metadata(), "split.tensors.count"));
      CHECK(file.metadata().require_integer("split.tensors.count") ==
            static_cast<int64_t>(file.tensors().size()));
    }
    ++n_models;
    for (const auto& adapter : manifest.value("adapters", nlohmann::json::array()))
      if (adapter.at("level") == entry.at("level"))
        check_adapter(GgufFile::open(artifact / adapter.at("name").get<std::string>()), file);
  }
  return n_models;
}

}  // namespace

TEST_SUITE("interop") {
  TEST_CASE(
      "interop: every level of every family keeps the rules of stock llama.cpp's loader, in every layout") {
    size_t n_models = 0;
    for (const auto& variant : test::tiny_variants())
      for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
        CAPTURE(variant.name);
        if (variant.spec.qk_norm &&
            (variant.spec.qkv_bias || (!variant.spec.tied && method == plan::Method::kAnchors)))
          continue;  // refused
        const test::ElasticFixture made(variant.spec, DType::kF16, method);
        n_models += check_artifact(made.artifact(), variant.spec);
        exporter::ExportOptions options;
        options.types = {DType::kF16};
        options.shared_common = true;
        pipeline::write_artifact(made.reordered(), options, nlohmann::ordered_json::object(),
                                 made.path() / "shared", false);
        n_models += check_artifact(made.path() / "shared", variant.spec);
        options.shared_common = false;
        options.packed = true;
        pipeline::write_artifact(made.reordered(), options, nlohmann::ordered_json::object(),
                                 made.path() / "packed", false);
        const GgufFile packed = GgufFile::open(made.path() / "packed/model.gguf");
        const Model full = check_keys(packed.metadata());
        check_widths(full);
        check_tensors(packed, full, variant.spec.n_vocab, false);
        CHECK(full.d_ff.front() == variant.spec.d_ff());
      }
    CHECK(n_models > 100);
  }

  TEST_CASE("interop: levels with zeros and with repairs keep the rules, and so do adapters") {
    for (const char* family : {"llama", "mistral", "qwen2"}) {
      CAPTURE(family);
      const ModelSpec spec = test::make_tiny_spec(family, {.n_layers = 4});
      const test::ElasticFixture made(spec, test::shallow_plan(spec));
      CHECK(check_artifact(made.artifact(), spec) == 3);
    }
    for (const char* family : {"llama", "mistral", "qwen2", "qwen3"})
      for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
        CAPTURE(family);
        const bool normed = std::string(family) == "qwen3";
        const ModelSpec spec = test::make_tiny_spec(family, {.tied = normed});
        const test::RepairedFixture made(spec, method, {true, !normed, false});
        made.export_as(DType::kF16, DType::kF16);
        CHECK(check_artifact(made.artifact(), spec) == 3);
        CHECK(fs::exists(made.artifact() / "lora-060.gguf"));
      }
  }
}

}  // namespace elastify
