#include "support/tiny_model.h"

#include <cmath>
#include <numbers>
#include <random>

#include "io/safetensors.h"
#include "model/checkpoint.h"
#include "model/families/families.h"

namespace elastify::test {
namespace {

bool is_norm(Role role) {
  return role == Role::kAttnNorm || role == Role::kFfnNorm || role == Role::kOutputNorm ||
         role == Role::kQueryNorm || role == Role::kKeyNorm || role == Role::kAttnPostNorm ||
         role == Role::kFfnPostNorm;
}

/// FNV-1a: the same on every platform, unlike std::hash.
uint64_t hash_of(const std::string& text, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325U ^ (seed * 0x9e3779b97f4a7c15U);
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return hash;
}

/// Box-Muller by hand: std::normal_distribution differs between libraries.
float normal(std::mt19937_64& random) {
  const double u = (static_cast<double>(random() >> 11) + 1) * 0x1p-53;
  const double v = static_cast<double>(random() >> 11) * 0x1p-53;
  return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
}

}  // namespace

ModelSpec make_tiny_spec(const std::string& family, const TinyOptions& options) {
  const ConfigTraits& traits = family_named(family).config;
  ModelSpec spec;
  spec.family = family;
  spec.n_layers = options.n_layers;
  spec.d_model = options.d_model;
  spec.n_vocab = options.n_vocab;
  spec.max_seq = options.max_seq;
  spec.head_dim = options.head_dim;
  LayerSpec layer = family_named(family).layer;
  layer.heads_per_group = options.heads_per_group;
  layer.sliding_window = options.sliding_window;
  spec.layer_kv_heads.assign(static_cast<size_t>(options.n_layers), options.n_kv_heads);
  spec.layer_d_ff.assign(static_cast<size_t>(options.n_layers), options.d_ff);
  spec.tied = options.tied;
  spec.qkv_bias = traits.always_qkv_bias || options.attention_bias;
  spec.attn_out_bias = options.attention_bias;
  spec.mlp_bias = options.mlp_bias;
  spec.qk_norm = traits.always_qk_norm;
  if (options.llama3_rope) {
    layer.rope = {.kind = RopeScaling::Kind::kLlama3,
                  .factor = 8,
                  .low_freq_factor = 1,
                  .high_freq_factor = 4,
                  .original_max_seq = 8192,
                  .factors = {}};
    layer.rope_theta = 500000;
  }
  spec.layers.assign(static_cast<size_t>(options.n_layers), layer);
  complete_spec(spec);
  return spec;
}

std::vector<TinyVariant> tiny_variants() {
  return {
      {"llama grouped", make_tiny_spec("llama")},
      {"llama one kv head per head, tied",
       make_tiny_spec("llama", {.n_kv_heads = 4, .heads_per_group = 1, .tied = true})},
      {"llama with biases", make_tiny_spec("llama", {.attention_bias = true, .mlp_bias = true})},
      {"llama with wide heads and scaled rope",
       make_tiny_spec("llama", {.head_dim = 16, .heads_per_group = 3, .llama3_rope = true})},
      {"mistral", make_tiny_spec("mistral", {.head_dim = 12, .n_kv_heads = 3})},
      {"mistral with a window", make_tiny_spec("mistral", {.sliding_window = 8})},
      {"qwen2 tied", make_tiny_spec("qwen2", {.tied = true})},
      {"qwen2 untied", make_tiny_spec("qwen2", {.n_kv_heads = 4, .heads_per_group = 1})},
      {"qwen3 tied", make_tiny_spec("qwen3", {.head_dim = 16, .tied = true})},
      {"qwen3 untied with biases", make_tiny_spec("qwen3", {.head_dim = 16, .attention_bias = true})},
  };
}

std::vector<TinyVariant> peculiar_variants() {
  ModelSpec one = make_tiny_spec("llama", {.attention_bias = true, .mlp_bias = true});
  one.layers[0].sliding_window = 4;
  one.layers[1].rope_theta = 500000;
  for (LayerSpec& layer : one.layers) layer.norm_offset = 1;
  one.output_norm_offset = 1;
  for (LayerSpec& layer : one.layers) layer.activation = Activation::kGeluTanh;
  complete_spec(one);
  const auto add_norm = [](ModelSpec& spec, Role role, int64_t layer, const char* name) {
    spec.tensors.push_back({.role = role,
                            .layer = layer,
                            .name = "model.layers." + std::to_string(layer) + "." + name,
                            .gguf_name = "blk." + std::to_string(layer) + "." + name,
                            .shape = {spec.d_model},
                            .axes = {AxisUse{}}});
  };
  // o has a bias. Otherwise, a norm right after o would cancel the size of the output of a single K/V head.
  ModelSpec two = make_tiny_spec("qwen3", {.head_dim = 16, .tied = true, .attention_bias = true});
  two.layers[0].activation = Activation::kGeluTanh;
  two.layers[1].norm_offset = 0.5;
  two.layers[1].heads_per_group = 3;
  two.layers[1].rope.kind = RopeScaling::Kind::kLinear;
  two.layers[1].rope.factor = 4;
  complete_spec(two);
  for (const int64_t layer : {0, 1}) {
    add_norm(two, Role::kAttnPostNorm, layer, "attn_post_norm.weight");
    add_norm(two, Role::kFfnPostNorm, layer, "ffn_post_norm.weight");
  }
  return {{"gelu, offsets, a window and another rotary base in one layer", one},
          {"norms after halves, other heads and scaling in one layer", two}};
}

Widths shallow_widths(const ModelSpec& spec) {
  Widths widths = full_widths(spec);
  for (const size_t space : {spec.attention_space(1), spec.attention_space(2), spec.mlp_space(2)})
    widths.at(space) = 0;
  return widths;
}

ElasticPlan shallow_plan(const ModelSpec& spec, int64_t grid) {
  Widths narrow = shallow_widths(spec);
  narrow[spec.attention_space(3)] = 0;
  narrow[spec.attention_space(0)] -= 1;
  narrow[spec.mlp_space(0)] = narrow[spec.mlp_space(1)] = grid;
  return {.spec_hash = spec_hash(spec),
          .method = "anchors",
          .grid = grid,
          .anchors = {},
          .levels = {make_level(spec, 0.3, narrow), make_level(spec, 0.6, shallow_widths(spec)),
                     make_level(spec, 1, full_widths(spec))},
          .notes = {}};
}

std::vector<float> tiny_weights(const TensorSpec& tensor, uint64_t seed) {
  std::mt19937_64 random(hash_of(tensor.name, seed));
  const bool matrix = tensor.shape.size() == 2;
  const float scale = matrix ? 1 / std::sqrt(static_cast<float>(tensor.shape[1])) : 0.1F;
  const float centre = is_norm(tensor.role) ? 1.0F : 0.0F;
  std::vector<float> values(static_cast<size_t>(n_elements(tensor.shape)));
  for (float& value : values) value = centre + scale * normal(random);
  return values;
}

void write_tiny_hf_model(const ModelSpec& spec, const fs::path& directory, uint64_t seed, DType dtype) {
  fs::create_directories(directory);
  write_text(directory / "config.json", hf_config_json(spec, dtype));
  std::vector<TensorInfo> tensors;
  for (const TensorSpec& tensor : spec.tensors) tensors.push_back({tensor.name, dtype, tensor.shape});
  SafetensorsWriter writer(directory / "model.safetensors", tensors, {{"format", "pt"}});
  for (const TensorSpec& tensor : spec.tensors) {
    const std::vector<float> values = tiny_weights(tensor, seed);
    std::vector<std::byte> bytes(n_bytes(dtype, tensor.shape));
    encode_row(dtype, values.data(), bytes.data(), static_cast<int64_t>(values.size()));
    writer.write(bytes);
  }
  writer.finish();
}

}  // namespace elastify::test
