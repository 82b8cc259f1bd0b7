#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "model/checkpoint.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;
using Json = nlohmann::json;

namespace {

void check_same_spec(const ModelSpec& a, const ModelSpec& b) {
  CHECK(a.family == b.family);
  CHECK(a.max_seq == b.max_seq);
  CHECK(a.norm_eps == b.norm_eps);
  CHECK(a.layers == b.layers);
  CHECK(spec_hash(a) == spec_hash(b));
}

/// A Hugging Face directory's weights as a list that tests change and write again.
struct Weights {
  std::vector<TensorInfo> tensors;
  std::vector<HostTensor> data;

  explicit Weights(const fs::path& file) {
    const SafetensorsFile source = SafetensorsFile::open(file);
    for (const TensorInfo& tensor : source.tensors()) add(tensor.name, source.tensor(tensor.name));
  }
  void add(const std::string& name, const HostTensor& tensor) {
    tensors.push_back({name, tensor.dtype, tensor.shape});
    data.push_back(tensor);
  }
  size_t find(const std::string& name) const {
    const auto place =
        std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo& t) { return t.name == name; });
    REQUIRE(place != tensors.end());
    return static_cast<size_t>(place - tensors.begin());
  }
  void remove(const std::string& name) {
    const auto index = static_cast<long>(find(name));
    tensors.erase(tensors.begin() + index);
    data.erase(data.begin() + index);
  }
  void write(const fs::path& file, size_t begin = 0, size_t end = SIZE_MAX) const {
    end = std::min(end, tensors.size());
    const std::vector<TensorInfo> part(tensors.begin() + static_cast<long>(begin),
                                       tensors.begin() + static_cast<long>(end));
    SafetensorsWriter writer(file, part, {});
    for (size_t i = begin; i < end; ++i) writer.write(data[i].bytes);
    writer.finish();
  }
};

/// A tiny model's directory that a test changes, and the error of opening it.
struct Spoiled {
  TemporaryDirectory parent;
  fs::path directory = parent / "model";

  explicit Spoiled(const ModelSpec& spec = make_tiny_spec("llama")) {
    write_tiny_hf_model(spec, directory, 1);
  }
  void edit_weights(const std::function<void(Weights&)>& edit) const {
    Weights weights(directory / "model.safetensors");
    edit(weights);
    weights.write(directory / "model.safetensors");
  }
  void edit_config(const std::function<void(Json&)>& edit) const {
    Json config = Json::parse(read_text(directory / "config.json"));
    edit(config);
    write_text(directory / "config.json", config.dump());
  }
  /// The message without the directory's name.
  std::string message() const {
    std::string text = message_of([&] { Checkpoint::open(directory); });
    const std::string prefix = directory.string() + ": ";
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
  }
  std::string hint() const {
    return hint_of([&] { Checkpoint::open(directory); });
  }
};

}  // namespace

TEST_CASE("read hf: a written model is read back, tensor by tensor, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const TemporaryDirectory directory;
    write_tiny_hf_model(variant.spec, directory / "model", 7);
    const Checkpoint model = Checkpoint::open(directory / "model");
    CHECK(model.format() == SourceFormat::kHuggingFace);
    CHECK(model.lossless_dtype() == DType::kF32);
    CHECK(model.files().size() == 2);
    check_same_spec(model.spec(), variant.spec);
    REQUIRE(model.spec().tensors.size() == variant.spec.tensors.size());
    for (size_t i = 0; i < variant.spec.tensors.size(); ++i)
      CHECK(values_of(model.load(i)) == tiny_weights(variant.spec.tensors[i], 7));
  }
}

TEST_CASE("read hf: 16-bit models keep their type") {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const TemporaryDirectory directory;
    write_tiny_hf_model(make_tiny_spec("qwen3"), directory / "model", 7, dtype);
    const Checkpoint model = Checkpoint::open(directory / "model");
    CHECK(model.lossless_dtype() == dtype);
    CHECK(model.stored_dtype(3) == dtype);
    CHECK(model.load(3).dtype == dtype);
    CHECK(model.load(3, DType::kF32).dtype == DType::kF32);
  }
}

TEST_CASE("read hf: config.json survives being written and read") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const std::string text = hf_config_json(variant.spec, DType::kBF16);
    check_same_spec(parse_hf_config(text), variant.spec);
    const Json config = Json::parse(text);
    CHECK(config["torch_dtype"] == "bfloat16");
    CHECK(config["rope_theta"] == variant.spec.layer(0).rope_theta);
  }
}

TEST_CASE("read hf: models that transformers wrote are read in old and new spellings") {
  const auto fixture = [](const char* name) { return fs::path(ELASTIFY_SOURCE_DIR) / "tests/data" / name; };
  const ModelSpec mha = Checkpoint::open(fixture("hf/llama_mha")).spec();
  CHECK(mha.layer(0).heads_per_group == 1);
  CHECK(mha.head_dim == 8);
  CHECK(mha.layer_kv_heads == std::vector<int64_t>{4, 4, 4});
  const ModelSpec tied = Checkpoint::open(fixture("hf/llama_gqa_tied")).spec();
  CHECK(tied.tied);
  CHECK(tied.head_dim == 16);
  CHECK(tied.layer(0).heads_per_group == 2);
  const ModelSpec scaled = Checkpoint::open(fixture("hf/llama_rope_llama3")).spec();
  CHECK(scaled.layer(0).rope.kind == RopeScaling::Kind::kLlama3);
  CHECK(scaled.layer(0).rope.factor == 8);
  CHECK(scaled.layer(0).rope.original_max_seq == 64);
  const Checkpoint old = Checkpoint::open(fixture("hf/llama_rope_llama3_old_bf16"));
  CHECK(old.lossless_dtype() == DType::kBF16);
  CHECK(old.spec().layer(0).rope.factor == 32);
  CHECK(old.spec().layer(0).rope_theta == 50000);
  const ModelSpec biased = Checkpoint::open(fixture("hf/llama_bias")).spec();
  CHECK(biased.attn_out_bias);
  CHECK(biased.mlp_bias);
  CHECK(Checkpoint::open(fixture("hf/mistral_window")).spec().layer(0).sliding_window == 8);
  const Checkpoint full = Checkpoint::open(fixture("hf/mistral_full_f16"));
  CHECK(full.spec().layer(0).sliding_window == 0);
  CHECK(full.spec().layer(0).rope_theta == 1000000);
  CHECK(full.lossless_dtype() == DType::kF16);
  CHECK(Checkpoint::open(fixture("hf/qwen2_tied")).spec().qkv_bias);
  CHECK(Checkpoint::open(fixture("hf/qwen2_untied_sharded")).files().size() == 4);
  CHECK(Checkpoint::open(fixture("hf/qwen3_tied")).spec().qk_norm);
}

TEST_CASE("read hf: tensors in shards are found through the index") {
  const Spoiled model;
  const Weights weights(model.directory / "model.safetensors");
  const Checkpoint whole = Checkpoint::open(model.directory);
  weights.write(model.directory / "a.safetensors", 0, 5);
  weights.write(model.directory / "b.safetensors", 5);
  Json index{{"metadata", Json::object()}, {"weight_map", Json::object()}};
  for (size_t i = 0; i < weights.tensors.size(); ++i)
    index["weight_map"][weights.tensors[i].name] = i < 5 ? "a.safetensors" : "b.safetensors";
  const fs::path index_path = model.directory / "model.safetensors.index.json";
  write_text(index_path, index.dump());
  fs::rename(model.directory / "model.safetensors", model.parent / "whole.safetensors");

  const Checkpoint sharded = Checkpoint::open(model.directory);
  CHECK(sharded.files().size() == 4);
  for (size_t i = 0; i < whole.spec().tensors.size(); ++i) CHECK(same_bytes(sharded.load(i), whole.load(i)));

  SUBCASE("a tensor that its shard lacks") {
    index["weight_map"]["lm_head.weight"] = "a.safetensors";
    write_text(index_path, index.dump());
    CHECK(model.message() ==
          "model.safetensors.index.json: the index says that lm_head.weight is in a.safetensors, which does "
          "not have it");
  }
  SUBCASE("a missing shard") {
    fs::remove(model.directory / "b.safetensors");
    CHECK(model.message() == "model.safetensors.index.json: shard b.safetensors is missing");
    CHECK(model.hint() == "download or copy the model again");
  }
  SUBCASE("a shard elsewhere") {
    index["weight_map"]["lm_head.weight"] = "../whole.safetensors";
    write_text(index_path, index.dump());
    CHECK(model.message() ==
          "model.safetensors.index.json: lm_head.weight: expected the name of a file in the same directory, "
          "got "
          "\"../whole.safetensors\"");
  }
  SUBCASE("a tensor missing from the index") {
    index["weight_map"].erase("model.norm.weight");
    write_text(index_path, index.dump());
    CHECK(model.message() == "missing tensors: model.norm.weight");
  }
  SUBCASE("an index of another kind") {
    write_text(index_path, R"({"weight_map": [1]})");
    CHECK(model.message() == "model.safetensors.index.json: weight_map: expected an object, got a list of 1");
    write_text(index_path, "{}");
    CHECK(model.message() == "model.safetensors.index.json: weight_map: missing");
  }
}

TEST_CASE("read hf: directories without a readable model are refused with what was found") {
  const Spoiled model;
  SUBCASE("no config") {
    fs::remove(model.directory / "config.json");
    CHECK(model.message() == "no config.json in this directory");
    write_text(model.directory / "m.gguf", "");
    CHECK(model.hint() == "give the GGUF file itself, m.gguf");
    write_text(model.directory / "adapter_config.json", "{}");
    CHECK(model.message() == "holds a LoRA adapter, expected a model");
  }
  SUBCASE("only pickles") {
    fs::remove(model.directory / "model.safetensors");
    CHECK(model.message() == "neither model.safetensors nor model.safetensors.index.json in this directory");
    write_text(model.directory / "pytorch_model.bin", "x");
    CHECK(model.message() ==
          "expected model.safetensors or model.safetensors.index.json, found only pytorch_model.bin, a "
          "PyTorch pickle");
    CHECK(model.hint().starts_with("convert it to safetensors"));
  }
  SUBCASE("safetensors of another name") {
    fs::rename(model.directory / "model.safetensors", model.directory / "weights.safetensors");
    CHECK(model.message() ==
          "expected model.safetensors or model.safetensors.index.json, found weights.safetensors");
  }
}

TEST_CASE("read hf: tensors that do not fit the config are listed together") {
  SUBCASE("missing") {
    const Spoiled model;
    model.edit_weights([](Weights& weights) {
      weights.remove("model.norm.weight");
      weights.remove("model.layers.1.mlp.up_proj.weight");
    });
    CHECK(model.message() == "missing tensors: model.layers.1.mlp.up_proj.weight, model.norm.weight");
  }
  SUBCASE("no output") {
    const Spoiled model;
    model.edit_weights([](Weights& weights) { weights.remove("lm_head.weight"); });
    CHECK(model.message() == "missing tensors: lm_head.weight");
    CHECK(model.hint() ==
          "if the output shares the embedding's weights, set \"tie_word_embeddings\": true in config.json");
  }
  SUBCASE("another shape") {
    const Spoiled model;
    model.edit_config([](Json& config) { config["vocab_size"] = 97; });
    CHECK(model.message() ==
          "model.embed_tokens.weight: expected shape [97, 32], got [96, 32], lm_head.weight: expected shape "
          "[97, 32], "
          "got [96, 32]");
  }
  SUBCASE("unexpected") {
    const Spoiled model;
    model.edit_weights(
        [](Weights& weights) { weights.add("model.layers.0.mlp.experts.0.w1.weight", tensor_of({1}, {1})); });
    CHECK(model.message() == "unexpected tensors: model.layers.0.mlp.experts.0.w1.weight");
    CHECK(model.hint() == "mixture-of-experts models are not supported");
  }
  SUBCASE("an adapter's") {
    const Spoiled model;
    model.edit_weights([](Weights& weights) {
      for (int i = 0; i < 8; ++i) weights.add(fmt::format("base.{}.lora_A.weight", i), tensor_of({1}, {1}));
    });
    CHECK(model.message() ==
          "unexpected tensors: base.0.lora_A.weight, base.1.lora_A.weight, base.2.lora_A.weight, "
          "base.3.lora_A.weight and 4 more");
    CHECK(model.hint() == "merge the LoRA adapter into the model first");
  }
}

TEST_CASE("read hf: tensors that do no harm are passed over") {
  const Spoiled model(make_tiny_spec("llama", {.tied = true}));
  const auto add_output = [](Weights& weights) {
    weights.add("lm_head.weight", weights.data[weights.find("model.embed_tokens.weight")]);
  };
  model.edit_weights([&](Weights& weights) {
    weights.add("model.layers.0.self_attn.rotary_emb.inv_freq", tensor_of({1, 2, 3, 4}, {4}));
    add_output(weights);
  });
  CHECK(model.message() == "no error");
  CHECK(Checkpoint::open(model.directory).spec().find(Role::kOutput) == -1);

  model.edit_weights([&](Weights& weights) {
    const size_t output = weights.find("lm_head.weight");
    weights.data[output] = tensor_of(std::vector<float>(96 * 32, 0.5F), {96, 32});
  });
  CHECK(model.message() ==
        "config.json says tie_word_embeddings, but lm_head.weight differs from the embedding");
}

TEST_CASE("read hf: a bad config.json is refused with the key at fault") {
  struct Case {
    const char* family;
    std::function<void(Json&)> spoil;
    std::string message;
  };
  const std::vector<Case> cases{
      {"llama", [](Json& c) { c = Json::array(); }, "expected a JSON object, got a list of 0"},
      {"llama", [](Json& c) { c.erase("model_type"); }, "model_type: missing"},
      {"llama", [](Json& c) { c["model_type"] = "gpt2"; },
       "model_type: model family 'gpt2' is not supported; supported are llama, mistral, qwen2, qwen3"},
      {"llama", [](Json& c) { c["architectures"] = {"LlamaForSequenceClassification"}; },
       "architectures: expected LlamaForCausalLM, got LlamaForSequenceClassification"},
      {"llama", [](Json& c) { c["architectures"] = "LlamaForCausalLM"; },
       "architectures: expected a list, got \"LlamaForCausalLM\""},
      {"llama",
       [](Json& c) {
         c["quantization_config"] = {{"bits", 4}};
       },
       "quantization_config: quantised safetensors are not supported"},
      {"llama", [](Json& c) { c["hidden_act"] = "gelu"; }, "hidden_act: expected \"silu\", got \"gelu\""},
      {"llama", [](Json& c) { c["partial_rotary_factor"] = 0.5; },
       "partial_rotary_factor: expected 1, got 0.5"},
      {"llama", [](Json& c) { c.erase("hidden_size"); }, "hidden_size: missing"},
      {"llama", [](Json& c) { c["hidden_size"] = nullptr; }, "hidden_size: missing"},
      {"llama", [](Json& c) { c["hidden_size"] = "32"; }, "hidden_size: expected an integer, got \"32\""},
      {"llama", [](Json& c) { c["hidden_size"] = 1e30; }, "hidden_size: expected an integer, got 1e+30"},
      {"llama", [](Json& c) { c["hidden_size"] = UINT64_MAX; },
       "hidden_size: expected an integer, got 18446744073709551615"},
      {"llama", [](Json& c) { c["num_hidden_layers"] = 1 << 30; },
       "num_hidden_layers: expected 1 to 1024, got 1073741824"},
      {"llama", [](Json& c) { c["num_attention_heads"] = 0; },
       "num_attention_heads: expected 1 or more, got 0"},
      {"llama", [](Json& c) { c["num_key_value_heads"] = 3; },
       "num_key_value_heads: expected a divisor of num_attention_heads (4), got 3"},
      {"llama", [](Json& c) { c.erase("head_dim"), c["hidden_size"] = 30; },
       "head_dim: missing, and hidden_size (30) is not a multiple of num_attention_heads (4)"},
      {"llama", [](Json& c) { c["rms_norm_eps"] = "tiny"; }, "rms_norm_eps: expected a number, got \"tiny\""},
      {"llama", [](Json& c) { c["tie_word_embeddings"] = 1; },
       "tie_word_embeddings: expected true or false, got 1"},
      {"llama",
       [](Json& c) {
         c["rope_scaling"] = {{"type", "yarn"}, {"factor", 2}};
       },
       "rope_scaling: rope type \"yarn\" is not supported; supported are default, linear, llama3"},
      {"llama",
       [](Json& c) {
         c["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 2}};
       },
       "rope_scaling: rope type \"dynamic\" is not supported; supported are default, linear, llama3"},
      {"llama",
       [](Json& c) {
         c["rope_parameters"] = {{"rope_type", "longrope"}};
       },
       "rope_parameters: rope type \"longrope\" is not supported; supported are default, linear, llama3"},
      {"llama",
       [](Json& c) {
         c["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 8}};
       },
       "rope_scaling: low_freq_factor: missing"},
      {"llama",
       [](Json& c) {
         c["rope_scaling"] = {{"type", "linear"}};
       },
       "rope_scaling: factor: missing"},
      {"llama", [](Json& c) { c["rope_scaling"] = 4; }, "rope_scaling: expected a JSON object, got 4"},
      {"llama",
       [](Json& c) {
         c["rope_parameters"] = {{"full_attention", {{"rope_type", "default"}}}};
       },
       "rope_parameters: full_attention: parameters by kind of layer are not supported"},
      {"llama", [](Json& c) { c["rope_theta"] = -1, c["vocab_size"] = 0; },
       "inconsistent model dimensions: vocabulary size is 0, expected 1 to 268435456; rope theta is -1, "
       "expected a "
       "positive number"},
      {"qwen2", [](Json& c) { c["use_sliding_window"] = true; },
       "use_sliding_window: sliding windows are not supported in qwen2 models"},
      {"qwen3",
       [](Json& c) {
         c["layer_types"] = {"full_attention", "sliding_attention"};
       },
       "layer_types: layer 1 has \"sliding_attention\"; only \"full_attention\" is supported in qwen3 "
       "models"},
  };
  for (const Case& each : cases) {
    const Spoiled model(make_tiny_spec(each.family));
    model.edit_config(each.spoil);
    CHECK(model.message() == "config.json: " + each.message);
  }
  const Spoiled model;
  write_text(model.directory / "config.json", "{\"model_type\": ");
  CHECK(model.message().starts_with("config.json: not valid JSON: parse error at line 1, column 16"));
}

TEST_CASE("read hf: keys that change nothing are accepted in either spelling") {
  const auto parse = [](const char* family, const std::function<void(Json&)>& edit) {
    Json config = Json::parse(hf_config_json(make_tiny_spec(family), DType::kF32));
    edit(config);
    return parse_hf_config(config.dump());
  };
  CHECK(parse("llama", [](Json& c) { c.erase("architectures"), c["pretraining_tp"] = 2; }).n_layers == 2);
  CHECK(parse("llama", [](Json& c) { c["dtype"] = "bfloat16", c.erase("torch_dtype"); }).n_layers == 2);
  CHECK(parse("llama", [](Json& c) { c.erase("head_dim"); }).head_dim == 8);
  CHECK(parse("llama", [](Json& c) { c["num_key_value_heads"] = nullptr; }).layer(0).heads_per_group == 1);
  CHECK(parse("llama", [](Json& c) { c.erase("rope_theta"); }).layer(0).rope_theta == 10000);
  CHECK(parse("llama",
              [](Json& c) {
                c["rope_scaling"] = {{"rope_type", "default"}};
              })
            .layer(0)
            .rope.kind == RopeScaling::Kind::kNone);
  const ModelSpec linear = parse("llama", [](Json& c) {
    c["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  });
  CHECK(linear.layer(0).rope.kind == RopeScaling::Kind::kLinear);
  CHECK(linear.layer(0).rope.factor == 2);
  CHECK(parse("llama",
              [](Json& c) {
                c["rope_parameters"] = {{"rope_theta", 5e5}}, c.erase("rope_theta");
              })
            .layer(0)
            .rope_theta == 500000);
  CHECK(parse("qwen2", [](Json& c) { c["sliding_window"] = 4096; }).layer(0).sliding_window == 0);
  CHECK(parse("qwen3", [](Json& c) {
          c["layer_types"] = {"full_attention", "full_attention"};
        }).n_layers == 2);
  CHECK(parse("qwen3", [](Json& c) { c.erase("head_dim"); }).head_dim == 128);
  CHECK(parse("mistral", [](Json& c) { c.erase("sliding_window"); }).layer(0).sliding_window == 4096);
  CHECK(parse("mistral",
              [](Json& c) {
                c["layer_types"] = {"sliding_attention", "sliding_attention"}, c["sliding_window"] = 8;
              })
            .layer(0)
            .sliding_window == 8);
}

TEST_CASE("read hf: what config.json cannot say is not written") {
  ModelSpec spec = make_tiny_spec("llama");
  spec.layer_d_ff = {64, 32};
  for (LayerSpec& layer : spec.layers)
    layer.rope = {.kind = RopeScaling::Kind::kFactors, .factors = {1, 1, 2, 4}};
  spec.qkv_bias = true;
  complete_spec(spec);
  CHECK(message_of([&] { hf_config_json(spec, DType::kF32); }) ==
        "config.json of llama models cannot say: widths that differ by layer; rope factors of no known "
        "scheme; biases "
        "on q, k and v but not on o");
  ModelSpec peculiar = make_tiny_spec("llama");
  peculiar.layers[0].rope_theta = 500000;
  peculiar.layers[1].norm_offset = 1;
  CHECK(message_of([&] { hf_config_json(peculiar, DType::kF32); }) ==
        "config.json of llama models cannot say: norm weights with an offset; rotary frequencies that differ "
        "by layer");
  CHECK(message_of([&] { hf_config_json(make_tiny_spec("llama"), DType::kQ8_0); }) ==
        "config.json has no name for the type q8_0");
}

TEST_CASE("read hf: the licence comes from the model card") {
  const Spoiled model;
  write_text(model.directory / "README.md",
             "---\nlanguage: en\nlicense: \"apache-2.0\"\r\n---\nlicense: none\n");
  CHECK(Checkpoint::open(model.directory).description() ==
        std::map<std::string, std::string>{{"license", "apache-2.0"}});
  write_text(model.directory / "README.md", "# A model\nlicense: mit\n");
  CHECK(Checkpoint::open(model.directory).description().empty());
}

TEST_CASE("read hf: damaged configurations and indexes are read or refused") {
  const std::string config = hf_config_json(make_tiny_spec("llama", {.llama3_rope = true}), DType::kF32);
  const MutationCount configs =
      read_mutations(config, 2000, [](const fs::path& path) { parse_hf_config(read_text(path)); });
  CHECK(configs.accepted > 0);
  CHECK(configs.refused > 0);

  const Spoiled model(make_tiny_spec("llama", {.n_layers = 1, .tied = true}));
  Json index{{"weight_map", Json::object()}};
  for (const TensorInfo& tensor : Weights(model.directory / "model.safetensors").tensors)
    index["weight_map"][tensor.name] = "part.safetensors";
  fs::rename(model.directory / "model.safetensors", model.directory / "part.safetensors");
  const MutationCount indexes = read_mutations(index.dump(), 500, [&](const fs::path& path) {
    fs::copy_file(path, model.directory / "model.safetensors.index.json",
                  fs::copy_options::overwrite_existing);
    Checkpoint::open(model.directory);
  });
  CHECK(indexes.refused > 0);
}
