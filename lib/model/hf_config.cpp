#include <algorithm>

#include <fmt/ranges.h>

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/families/families.h"
#include "model/json_fields.h"
#include "model/tensor_match.h"

// config.json of a Hugging Face directory. Source: transformers, models/{llama,mistral,qwen2,qwen3}/
// configuration_*.py and modeling_rope_utils.py. Two generations of keys are in use: `torch_dtype`,
// `rope_theta` and `rope_scaling` at the top; `dtype` and `rope_parameters` since transformers 5.

namespace elastify {
namespace {

using Json = nlohmann::json;
using Fields = JsonFields<Json>;

const Family& read_family(const Fields& config) {
  if (config.find("model_type") == nullptr && config.find("peft_type") != nullptr)
    throw Error("this is the configuration of a LoRA adapter", "merge the adapter into its model first");
  const std::string type = config.require_string("model_type");
  const Family& family = with_context("model_type", [&]() -> const Family& { return family_named(type); });
  if (config.find("architectures") == nullptr) return family;
  const std::vector<std::string> architectures = config.require_strings("architectures");
  if (std::find(architectures.begin(), architectures.end(), family.hf_architecture) == architectures.end())
    fail("architectures: expected {}, got {}", family.hf_architecture, fmt::join(architectures, ", "));
  return family;
}

/// Names in `hidden_act`. We write the first one.
std::vector<std::string> activation_names(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return {"silu", "swish"};
    case Activation::kGeluTanh:
      return {"gelu_pytorch_tanh"};
  }
  return {};
}

void refuse_variants(const Fields& config, const Family& family) {
  if (config.find("quantization_config") != nullptr)
    throw Error("quantization_config: quantised safetensors are not supported",
                "use the float model this one was made from");
  const std::vector<std::string> names = activation_names(family.layer.activation);
  const std::string activation = config.string("hidden_act").value_or(names.front());
  if (std::find(names.begin(), names.end(), activation) == names.end())
    fail("hidden_act: expected \"{}\", got \"{}\"", names.front(), activation);
  if (config.number("partial_rotary_factor").value_or(1) != 1)
    fail("partial_rotary_factor: expected 1, got {}", config.require_number("partial_rotary_factor"));
  if (family.config.sliding_window_switch && config.boolean("use_sliding_window").value_or(false))
    fail("use_sliding_window: sliding windows are not supported in {} models", family.name);
}

RopeScaling read_scaling(const Fields& rope) {
  RopeScaling scaling;
  const std::string type = rope.string("rope_type").value_or(rope.string("type").value_or("default"));
  if (rope.number("partial_rotary_factor").value_or(1) != 1)
    fail("partial_rotary_factor: expected 1, got {}", rope.require_number("partial_rotary_factor"));
  if (type == "default") return scaling;
  if (type != "linear" && type != "llama3")
    fail("rope type \"{}\" is not supported; supported are default, linear, llama3", type);
  scaling.kind = type == "linear" ? RopeScaling::Kind::kLinear : RopeScaling::Kind::kLlama3;
  scaling.factor = rope.require_number("factor");
  if (scaling.kind == RopeScaling::Kind::kLlama3) {
    scaling.low_freq_factor = rope.require_number("low_freq_factor");
    scaling.high_freq_factor = rope.require_number("high_freq_factor");
    scaling.original_max_seq = rope.require_number("original_max_position_embeddings");
  }
  return scaling;
}

void read_rope(const Fields& config, const Family& family, LayerSpec& layer) {
  layer.rope_theta = config.number("rope_theta").value_or(family.config.default_theta);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* value = config.find(key);
    if (value == nullptr) continue;
    with_context(key, [&] {
      const Fields rope(*value);
      for (const auto& [name, part] : value->items()) {
        if (part.is_object()) fail("{}: parameters by kind of layer are not supported", name);
      }
      layer.rope_theta = rope.number("rope_theta").value_or(layer.rope_theta);
      layer.rope = read_scaling(rope);
    });
    return;
  }
}

void read_window(const Fields& config, const Family& family, LayerSpec& layer) {
  const ConfigTraits& traits = family.config;
  if (traits.sliding_window_key && !traits.sliding_window_switch) {
    layer.sliding_window = config.has_key("sliding_window") ? config.integer("sliding_window").value_or(0)
                                                            : traits.default_sliding_window;
  }
  if (config.find("layer_types") == nullptr) return;
  const std::vector<std::string> types = config.require_strings("layer_types");
  const auto all = [&](std::string_view type) {
    return std::all_of(types.begin(), types.end(), [&](const std::string& each) { return each == type; });
  };
  if (all("full_attention")) {
    layer.sliding_window = 0;
  } else if (layer.sliding_window == 0 || !all("sliding_attention")) {
    const auto other = std::find_if(types.begin(), types.end(),
                                    [](const std::string& type) { return type != "full_attention"; });
    fail("layer_types: layer {} has \"{}\"; only \"full_attention\" is supported in {} models",
         other - types.begin(), *other, family.name);
  }
}

/// \param layer  receives the query heads per K/V head
void read_dimensions(const Fields& config, const Family& family, ModelSpec& spec, LayerSpec& layer) {
  spec.n_layers = config.require_integer("num_hidden_layers");
  spec.d_model = config.require_integer("hidden_size");
  spec.n_vocab = config.require_integer("vocab_size");
  spec.max_seq = config.integer("max_position_embeddings").value_or(family.config.default_max_seq);
  const int64_t d_ff = config.require_integer("intermediate_size");
  const int64_t n_heads = config.require_integer("num_attention_heads");
  const int64_t n_kv_heads = config.integer("num_key_value_heads").value_or(n_heads);
  if (n_heads < 1) fail("num_attention_heads: expected 1 or more, got {}", n_heads);
  if (n_kv_heads < 1 || n_heads % n_kv_heads != 0)
    fail("num_key_value_heads: expected a divisor of num_attention_heads ({}), got {}", n_heads, n_kv_heads);
  layer.heads_per_group = n_heads / n_kv_heads;

  const int64_t default_head_dim = config.has_key("head_dim") ? 0 : family.config.default_head_dim;
  spec.head_dim = config.integer("head_dim").value_or(default_head_dim);
  if (spec.head_dim == 0) {
    if (spec.d_model % n_heads != 0)
      fail("head_dim: missing, and hidden_size ({}) is not a multiple of num_attention_heads ({})",
           spec.d_model, n_heads);
    spec.head_dim = spec.d_model / n_heads;
  }
  // complete_spec() also refuses other counts of layers, but the lists below must not become that long first.
  if (spec.n_layers < 1 || spec.n_layers > 1024)
    fail("num_hidden_layers: expected 1 to 1024, got {}", spec.n_layers);
  spec.layer_kv_heads.assign(static_cast<size_t>(spec.n_layers), n_kv_heads);
  spec.layer_d_ff.assign(static_cast<size_t>(spec.n_layers), d_ff);
}

const char* torch_dtype(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      fail("config.json has no name for the type {}", info(dtype).name);
  }
}

/// Properties of the model that the family's config.json has no key for.
std::vector<std::string> unsayable(const ModelSpec& spec, const Family& family) {
  const ConfigTraits& traits = family.config;
  std::vector<std::string> problems = layer_peculiarities(spec);
  if (!spec.is_uniform()) problems.push_back("widths that differ by layer");
  if (spec.layer(0).rope.kind == RopeScaling::Kind::kFactors)
    problems.push_back("rope factors of no known scheme");
  if (spec.qkv_bias && !traits.always_qkv_bias && !traits.attention_bias_key)
    problems.push_back("biases on q, k and v");
  if (!spec.qkv_bias && traits.always_qkv_bias) problems.push_back("no biases on q, k and v");
  if (spec.attn_out_bias && !traits.attention_bias_key) problems.push_back("a bias on o");
  if (traits.attention_bias_key && spec.qkv_bias != spec.attn_out_bias)
    problems.push_back(spec.qkv_bias ? "biases on q, k and v but not on o" : "a bias on o alone");
  if (spec.mlp_bias && !traits.mlp_bias_key) problems.push_back("biases in the mlp");
  if (!spec.qk_norm && traits.always_qk_norm) problems.push_back("no norms on q and k");
  const bool window = traits.sliding_window_key && !traits.sliding_window_switch;
  if (spec.layer(0).sliding_window > 0 && !window) problems.push_back("a sliding window");
  return problems;
}

nlohmann::ordered_json scaling_json(const RopeScaling& rope) {
  if (rope.kind == RopeScaling::Kind::kNone) return nullptr;
  if (rope.kind == RopeScaling::Kind::kLinear)
    return {{"type", "linear"}, {"rope_type", "linear"}, {"factor", rope.factor}};
  return {{"rope_type", "llama3"},
          {"factor", rope.factor},
          {"low_freq_factor", rope.low_freq_factor},
          {"high_freq_factor", rope.high_freq_factor},
          {"original_max_position_embeddings", static_cast<int64_t>(rope.original_max_seq)}};
}

}  // namespace

ModelSpec parse_hf_config(const std::string& text) {
  const Json json = parse_json<Json>(text);
  const Fields config(json);
  const Family& family = read_family(config);
  refuse_variants(config, family);

  ModelSpec spec;
  spec.family = family.name;
  LayerSpec layer = family.layer;
  read_dimensions(config, family, spec, layer);
  read_rope(config, family, layer);
  read_window(config, family, layer);
  spec.layers.assign(static_cast<size_t>(spec.n_layers), layer);
  spec.output_norm_offset = layer.norm_offset;
  const ConfigTraits& traits = family.config;
  spec.norm_eps = config.number("rms_norm_eps").value_or(1e-6);
  spec.tied = config.boolean("tie_word_embeddings").value_or(traits.default_tied);
  const bool attention_bias = traits.attention_bias_key && config.boolean("attention_bias").value_or(false);
  spec.qkv_bias = traits.always_qkv_bias || attention_bias;
  spec.attn_out_bias = attention_bias;
  spec.mlp_bias = traits.mlp_bias_key && config.boolean("mlp_bias").value_or(false);
  spec.qk_norm = traits.always_qk_norm;
  complete_spec(spec);
  return spec;
}

std::string hf_config_json(const ModelSpec& spec, DType dtype) {
  const Family& family = family_named(spec.family);
  const ConfigTraits& traits = family.config;
  if (const auto problems = unsayable(spec, family); !problems.empty())
    throw Error(
        fmt::format("config.json of {} models cannot say: {}", family.name, fmt::join(problems, "; ")),
        "export such a model as GGUF");

  const LayerSpec& layer = spec.layer(0);  // all layers are alike: unsayable() refused others
  nlohmann::ordered_json config;
  config["architectures"] = {family.hf_architecture};
  config["model_type"] = family.name;
  config["vocab_size"] = spec.n_vocab;
  config["hidden_size"] = spec.d_model;
  config["intermediate_size"] = spec.d_ff();
  config["num_hidden_layers"] = spec.n_layers;
  config["num_attention_heads"] = spec.n_heads();
  config["num_key_value_heads"] = spec.n_kv_heads();
  config["head_dim"] = spec.head_dim;
  config["hidden_act"] = activation_names(layer.activation).front();
  config["max_position_embeddings"] = spec.max_seq;
  config["rms_norm_eps"] = spec.norm_eps;
  config["rope_theta"] = layer.rope_theta;
  config["rope_scaling"] = scaling_json(layer.rope);
  if (traits.attention_bias_key) config["attention_bias"] = spec.attn_out_bias;
  if (traits.mlp_bias_key) config["mlp_bias"] = spec.mlp_bias;
  if (traits.sliding_window_switch) {
    config["use_sliding_window"] = false;
  } else if (traits.sliding_window_key) {
    config["sliding_window"] =
        layer.sliding_window > 0 ? nlohmann::ordered_json(layer.sliding_window) : nullptr;
  }
  config["attention_dropout"] = 0.0;
  config["tie_word_embeddings"] = spec.tied;
  config["torch_dtype"] = torch_dtype(dtype);
  config["use_cache"] = true;
  return config.dump(2) + "\n";
}

std::string hf_config_json(const ModelSpec& spec, DType dtype, const std::string& source_config) {
  using Ordered = nlohmann::ordered_json;
  const auto made = Ordered::parse(hf_config_json(spec, dtype));
  auto config = parse_json<Ordered>(source_config);
  if (config.value("model_type", "") != spec.family) {
    // The other family may have other defaults for keys that the source leaves out, so they are written.
    const bool has_rope = config.contains("rope_parameters");
    for (const auto& [key, value] : made.items())
      if (!config.contains(key) && !(has_rope && key.starts_with("rope_"))) config[key] = value;
    for (const char* key : {"architectures", "model_type"}) config[key] = made.at(key);
  }
  for (const char* key : {"intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"})
    config[key] = made.at(key);
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (made.value(key, false)) config[key] = true;
  for (const char* key : {"dtype", "torch_dtype"})
    if (config.contains(key)) config[key] = made.at("torch_dtype");
  if (!config.contains("dtype") && !config.contains("torch_dtype"))
    config["torch_dtype"] = made.at("torch_dtype");
  return config.dump(2) + "\n";
}

}  // namespace elastify
