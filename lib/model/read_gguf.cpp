#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "io/gguf.h"
#include "model/checkpoint.h"
#include "model/families/families.h"
#include "model/rope_order.h"
#include "model/tensor_match.h"

// GGUF files of llama.cpp's architectures. Source: llama.cpp, src/llama-arch.cpp (keys and tensor names),
// src/models/{llama,deci,qwen2,qwen3,openelm}.cpp (graphs), convert_hf_to_gguf.py (row order).

namespace elastify {
namespace {

/// The family whose graph an architecture computes, and its order of rotary pairs.
struct Architecture {
  std::string_view name;
  std::string_view family;
  RopeOrder rope;
};

// deci is llama with widths by layer; openelm is qwen3 with widths by layer and q, k and v in one tensor.
constexpr Architecture kArchitectures[] = {{"llama", "llama", RopeOrder::kInterleaved},
                                           {"deci", "llama", RopeOrder::kInterleaved},
                                           {"qwen2", "qwen2", RopeOrder::kHalves},
                                           {"qwen3", "qwen3", RopeOrder::kHalves},
                                           {"openelm", "qwen3", RopeOrder::kHalves}};

constexpr const char* kRopeFactors = "rope_freqs.weight";

const Architecture& architecture_of(const GgufFile& file) {
  const std::string name = file.metadata().require_string("general.architecture");
  std::vector<std::string> known;
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture;
    known.emplace_back(architecture.name);
  }
  fail("general.architecture \"{}\" is not supported; supported are {}", name, list_some(known, 8));
}

void refuse_variants(const GgufFile& file) {
  const GgufMetadata& metadata = file.metadata();
  const std::string type = metadata.string("general.type").value_or("model");
  if (type == "adapter")
    throw Error("this is a LoRA adapter, expected a model", "give the model it belongs to");
  if (type != "model") fail("general.type is \"{}\", expected \"model\"", type);
  if (file.tensors().empty()) fail("has a vocabulary, but no tensors");
}

/// The keys `{architecture}.{key}` of the metadata.
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string prefix) : metadata_(metadata), prefix_(std::move(prefix)) {}

  std::string full(std::string_view key) const { return fmt::format("{}.{}", prefix_, key); }
  bool contains(std::string_view key) const { return metadata_.contains(full(key)); }
  std::optional<int64_t> integer(std::string_view key) const { return metadata_.integer(full(key)); }
  int64_t require_integer(std::string_view key) const { return metadata_.require_integer(full(key)); }
  std::optional<bool> boolean(std::string_view key) const { return metadata_.boolean(full(key)); }
  std::optional<std::string> string(std::string_view key) const { return metadata_.string(full(key)); }

  /// Reads a float32 as its shortest decimal: 1e-05, not 9.99999974e-06.
  std::optional<double> number(std::string_view key) const {
    const std::optional<double> value = metadata_.number(full(key));
    if (!value || !std::holds_alternative<float>(*metadata_.find(full(key)))) return value;
    return std::strtod(fmt::format("{}", static_cast<float>(*value)).c_str(), nullptr);
  }

  /// One number for all layers, or a list with one for each.
  std::vector<int64_t> per_layer(std::string_view key, int64_t n_layers) const {
    const GgufValue* value = metadata_.find(full(key));
    if (value == nullptr || !std::holds_alternative<GgufArray>(*value))
      return std::vector<int64_t>(static_cast<size_t>(n_layers), require_integer(key));
    std::vector<int64_t> values = *metadata_.integers(full(key));
    if (static_cast<int64_t>(values.size()) != n_layers)
      fail("{}: expected one value or {}, got {}", full(key), n_layers, values.size());
    return values;
  }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

/// \param layer_spec  receives the query heads per K/V head
void read_heads(const Keys& keys, ModelSpec& spec, LayerSpec& layer_spec) {
  const std::vector<int64_t> heads = keys.per_layer("attention.head_count", spec.n_layers);
  spec.layer_kv_heads = keys.contains("attention.head_count_kv")
                            ? keys.per_layer("attention.head_count_kv", spec.n_layers)
                            : heads;
  for (size_t layer = 0; layer < heads.size(); ++layer) {
    const int64_t n_heads = heads[layer];
    const int64_t n_groups = spec.layer_kv_heads[layer];
    if (n_heads == 0 && n_groups == 0 && layer > 0) continue;  // a layer without attention
    if (n_heads < 1 || n_groups < 1)
      fail("layer {} has {} heads and {} kv heads, expected 1 or more of both{}", layer, n_heads, n_groups,
           layer > 0 ? ", or none" : "");
    if (n_heads % n_groups != 0)
      fail("layer {}: {} heads cannot share {} kv heads equally", layer, n_heads, n_groups);
    if (layer == 0) layer_spec.heads_per_group = n_heads / n_groups;
    if (n_heads / n_groups != layer_spec.heads_per_group)
      fail("layer {} has {} heads per kv head, layer 0 has {}; one number for all layers is supported", layer,
           n_heads / n_groups, layer_spec.heads_per_group);
  }
  const std::optional<int64_t> key_length = keys.integer("attention.key_length");
  if (!key_length && spec.d_model % heads[0] != 0)
    fail("{} is missing, and the width {} is not a multiple of {} heads", keys.full("attention.key_length"),
         spec.d_model, heads[0]);
  spec.head_dim = key_length ? *key_length : spec.d_model / heads[0];
  const int64_t value_length = keys.integer("attention.value_length").value_or(spec.d_model / heads[0]);
  if (value_length != spec.head_dim)
    fail("keys of {} and values of {} elements per head; expected the same", spec.head_dim, value_length);
  const int64_t rotated = keys.integer("rope.dimension_count").value_or(spec.head_dim);
  if (rotated != spec.head_dim)
    fail("{}: expected {} (all of a head), got {}", keys.full("rope.dimension_count"), spec.head_dim,
         rotated);
}

/// Whether the layer's scaling gives these factors.
/// \param factors  [head_dim / 2]
bool reproduces(const LayerSpec& layer, const std::vector<float>& factors) {
  const std::vector<float> divisors =
      rope_frequency_divisors(layer, 2 * static_cast<int64_t>(factors.size()));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(std::abs(divisors[i] - factors[i]) <= 1e-5F * std::abs(factors[i]))) return false;
  }
  return true;
}

/// Files of Llama 3 models hold the divisors that result from its scaling. This recovers the scaling's
/// parameters, which config.json needs.
RopeScaling recognised(LayerSpec layer, const std::vector<float>& factors) {
  layer.rope = {};
  if (reproduces(layer, factors)) return {};
  layer.rope.kind = RopeScaling::Kind::kLlama3;
  layer.rope.factor = *std::max_element(factors.begin(), factors.end());
  layer.rope.low_freq_factor = 1;
  layer.rope.high_freq_factor = 4;
  for (const double original : {8192.0, 4096.0, 16384.0, 32768.0, 65536.0, 131072.0}) {
    layer.rope.original_max_seq = original;
    if (reproduces(layer, factors)) return layer.rope;
  }
  RopeScaling scaling;
  scaling.kind = RopeScaling::Kind::kFactors;
  scaling.factors = factors;
  return scaling;
}

void read_rope(const GgufFile& file, const Keys& keys, int64_t head_dim, LayerSpec& layer) {
  layer.rope_theta = keys.number("rope.freq_base").value_or(10000);
  const std::string type = keys.string("rope.scaling.type").value_or("linear");
  if (type != "none" && type != "linear")
    fail("{}: \"{}\" is not supported; supported are none, linear", keys.full("rope.scaling.type"), type);
  const double factor =
      keys.number("rope.scaling.factor").value_or(keys.number("rope.scale_linear").value_or(0));
  if (type == "linear" && factor != 0 && factor != 1) {
    layer.rope.kind = RopeScaling::Kind::kLinear;
    layer.rope.factor = factor;
  }
  if (!file.contains(kRopeFactors)) return;
  if (layer.rope.kind != RopeScaling::Kind::kNone)
    fail("{} together with linear rope scaling is not supported", kRopeFactors);
  const HostTensor stored = convert(file.tensor(kRopeFactors), DType::kF32);
  std::vector<float> factors(stored.bytes.size() / sizeof(float));
  std::copy(stored.bytes.begin(), stored.bytes.end(), std::as_writable_bytes(std::span(factors)).begin());
  if (static_cast<int64_t>(factors.size()) != head_dim / 2)
    fail("{}: expected {} elements, got {}", kRopeFactors, head_dim / 2, factors.size());
  for (const float each : factors) {
    if (!std::isfinite(each) || each <= 0) fail("{}: expected positive numbers, got {}", kRopeFactors, each);
  }
  layer.rope = recognised(layer, factors);
}

bool has_any_layer(const GgufFile& file, int64_t n_layers, std::initializer_list<const char*> names) {
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    for (const char* name : names) {
      if (file.contains(fmt::format("blk.{}.{}", layer, name))) return true;
    }
  }
  return false;
}

ModelSpec read_spec(const GgufFile& file, const Architecture& architecture) {
  const Keys keys(file.metadata(), std::string(architecture.name));
  ModelSpec spec;
  spec.family = architecture.family;
  spec.n_layers = keys.require_integer("block_count");
  if (spec.n_layers < 1 || spec.n_layers > 1024)
    fail("{}: expected 1 to 1024, got {}", keys.full("block_count"), spec.n_layers);
  if (keys.integer("expert_count").value_or(0) > 0)
    fail("{}: mixture-of-experts models are not supported", keys.full("expert_count"));
  if (!keys.boolean("attention.causal").value_or(true))
    fail("{}: models without a causal mask are not supported", keys.full("attention.causal"));
  spec.d_model = keys.require_integer("embedding_length");
  spec.max_seq = keys.require_integer("context_length");
  spec.layer_d_ff = keys.per_layer("feed_forward_length", spec.n_layers);
  const std::optional<double> epsilon = keys.number("attention.layer_norm_rms_epsilon");
  if (!epsilon) fail("{}: missing", keys.full("attention.layer_norm_rms_epsilon"));
  spec.norm_eps = *epsilon;
  LayerSpec layer = family_named(spec.family).layer;
  read_heads(keys, spec, layer);
  read_rope(file, keys, spec.head_dim, layer);
  spec.layers.assign(static_cast<size_t>(spec.n_layers), layer);
  spec.output_norm_offset = layer.norm_offset;

  for (const TensorInfo& tensor : file.tensors()) {
    if (tensor.name == "token_embd.weight" && !tensor.shape.empty()) spec.n_vocab = tensor.shape[0];
  }
  if (spec.n_vocab == 0) fail("missing tensors: token_embd.weight");
  spec.tied = !file.contains("output.weight");
  spec.qkv_bias =
      has_any_layer(file, spec.n_layers, {"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias"});
  spec.attn_out_bias = has_any_layer(file, spec.n_layers, {"attn_output.bias"});
  spec.mlp_bias = has_any_layer(file, spec.n_layers, {"ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"});
  spec.qk_norm = family_named(spec.family).config.always_qk_norm;
  complete_spec(spec);
  return spec;
}

/// The place of a tensor's rows in the file: all of one tensor, or a part of the fused q|k|v.
struct Source {
  std::string name;
  Shape shape;  ///< of the tensor in the file
  int64_t first_row = 0;
  bool rotary = false;  ///< rows are in the architecture's rope order
  bool zero = false;    ///< not in the file: all zeros
};

Source source_of(const GgufFile& file, const ModelSpec& spec, const TensorSpec& tensor) {
  const bool query = tensor.role == Role::kQuery || tensor.role == Role::kQueryBias;
  const bool key = tensor.role == Role::kKey || tensor.role == Role::kKeyBias;
  const bool value = tensor.role == Role::kValue || tensor.role == Role::kValueBias;
  Source source{.name = tensor.gguf_name, .shape = tensor.shape, .first_row = 0, .rotary = query || key};
  // llama.cpp's graphs accept each bias on its own, and repaired levels may have only those of down.
  source.zero =
      (tensor.role == Role::kGateBias || tensor.role == Role::kUpBias) && !file.contains(source.name);
  if (!query && !key && !value) return source;
  const std::string fused =
      fmt::format("blk.{}.attn_qkv.{}", tensor.layer, tensor.shape.size() == 1 ? "bias" : "weight");
  if (!file.contains(fused)) return source;
  const int64_t kv_rows = spec.layer_kv_heads[static_cast<size_t>(tensor.layer)] * spec.head_dim;
  const int64_t query_rows = kv_rows * spec.layer(tensor.layer).heads_per_group;
  source.name = fused;
  source.shape[0] = query_rows + 2 * kv_rows;
  if (!query) source.first_row = query_rows + (key ? 0 : kv_rows);
  return source;
}

/// Removes superfluous leading axes of length 1 that some writers add: [1, out, in] becomes [out, in].
std::vector<TensorInfo> trimmed(std::vector<TensorInfo> tensors) {
  for (TensorInfo& tensor : tensors) {
    const size_t rank =
        tensor.name.find("norm") != std::string::npos || tensor.name.ends_with(".bias") ? 1 : 2;
    while (tensor.shape.size() > rank && tensor.shape[0] == 1) tensor.shape.erase(tensor.shape.begin());
  }
  return tensors;
}

HostTensor rows_of(const HostTensor& stored, const Source& source, const Shape& shape) {
  HostTensor part = stored;
  part.shape = shape;
  const uint64_t bytes = n_bytes(stored.dtype, shape);
  const uint64_t row = bytes / static_cast<uint64_t>(shape[0]);
  part.bytes = stored.bytes.subspan(static_cast<uint64_t>(source.first_row) * row, bytes);
  return part;
}

std::map<std::string, std::string> read_description(const GgufMetadata& metadata) {
  std::map<std::string, std::string> description;
  for (const char* key : {"name", "basename", "organization", "author", "version", "finetune", "description",
                          "url", "size_label", "license", "license.name", "license.link"}) {
    const GgufValue* value = metadata.find(fmt::format("general.{}", key));
    if (value == nullptr || !std::holds_alternative<std::string>(*value)) continue;
    if (const auto& text = std::get<std::string>(*value); !text.empty()) description[key] = text;
  }
  return description;
}

}  // namespace

Checkpoint open_gguf(const fs::path& path) {
  const auto shared = std::make_shared<const GgufFile>(GgufFile::open(path));
  return with_context(path.string(), [&] {
    const GgufFile& file = *shared;
    refuse_variants(file);
    const Architecture& architecture = architecture_of(file);
    ModelSpec spec = read_spec(file, architecture);

    std::vector<Source> sources;
    std::vector<TensorInfo> expected;
    for (const TensorSpec& tensor : spec.tensors) {
      sources.push_back(source_of(file, spec, tensor));
      const Source& source = sources.back();
      if (source.first_row == 0 && !source.zero) expected.push_back({source.name, DType::kF32, source.shape});
    }
    require_match(expected, trimmed(file.tensors()),
                  [](const std::string& name) { return name == kRopeFactors; });

    std::vector<DType> dtypes;
    for (const Source& source : sources) {
      dtypes.push_back(source.zero ? DType::kF32 : file.tensor(source.name).dtype);
      if (source.shape.size() == 1 && !is_float(dtypes.back()))
        fail("{}: expected a float type, got {}", source.name, info(dtypes.back()).name);
    }
    std::map<std::string, std::string> description = read_description(file.metadata());
    std::vector<Shape> shapes;
    for (const TensorSpec& tensor : spec.tensors) shapes.push_back(tensor.shape);
    const auto load = [shared, sources, shapes, head_dim = spec.head_dim,
                       order = architecture.rope](size_t index) {
      const Source& source = sources.at(index);
      if (source.zero) return HostTensor::allocate(DType::kF32, shapes[index]);
      HostTensor tensor = rows_of(shared->tensor(source.name), source, shapes[index]);
      return source.rotary ? reorder_rope_rows(tensor, head_dim, order, RopeOrder::kHalves) : tensor;
    };
    return Checkpoint(path, SourceFormat::kGguf, std::move(spec), std::move(dtypes), shared->paths(),
                      std::move(description), load, [shared] { shared->release_pages(); });
  });
}

}  // namespace elastify
