#include "export/gguf_metadata.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace elastify::exporter {
namespace {

constexpr const char* kTokens = "tokenizer.ggml.tokens";

/// Keys general.* that a sub-model takes from its source. size_label is not among them, since the size
/// differs.
constexpr const char* kDescription[] = {"name",         "basename",    "organization", "author",
                                        "version",      "finetune",    "url",          "license",
                                        "license.name", "license.link"};

/// The GGUF file that holds the tokenizer's keys; empty if there is none.
fs::path keys_file(const Checkpoint& source) {
  if (source.format() == SourceFormat::kGguf) return source.path();
  const fs::path kept = source.path() / "tokenizer.gguf";
  return source.format() == SourceFormat::kHuggingFace && fs::exists(kept) ? kept : fs::path();
}

void copy_verbatim(const GgufMetadata& from, int64_t n_vocab, GgufMetadata& to) {
  for (const auto& [key, value] : from.entries()) {
    if (key.starts_with("tokenizer.")) to.set(key, value);
  }
  const std::vector<std::string>* tokens = from.strings(kTokens);
  if (tokens != nullptr && static_cast<int64_t>(tokens->size()) != n_vocab)
    fail("{}: expected one token for each of the {} rows of the embedding, got {}", kTokens, n_vocab,
         tokens->size());
}

void add_vocabulary(const Vocabulary* vocabulary, int64_t n_vocab, GgufMetadata& keys) {
  if (vocabulary == nullptr) {
    keys.set("tokenizer.ggml.model", std::string("no_vocab"));
    return;
  }
  if (vocabulary->size() > n_vocab)
    throw Error(
        fmt::format("the tokenizer has {} tokens, the embedding only {} rows", vocabulary->size(), n_vocab),
        "is this the tokenizer of another model?");
  Vocabulary padded = *vocabulary;
  pad_vocabulary(padded, n_vocab);
  write_gguf_keys(padded, keys);
}

GgufValue widths_value(const std::vector<int64_t>& by_layer) {
  if (std::adjacent_find(by_layer.begin(), by_layer.end(), std::not_equal_to<>()) == by_layer.end())
    return static_cast<uint32_t>(by_layer.at(0));
  return GgufArray{std::vector<int32_t>(by_layer.begin(), by_layer.end())};
}

}  // namespace

std::string name_in_file(const TensorSpec& tensor, const GgufArchitecture& architecture) {
  const bool fused = architecture.fused_qkv && (tensor.role == Role::kQuery || tensor.role == Role::kKey ||
                                                tensor.role == Role::kValue);
  return fused ? fmt::format("blk.{}.attn_qkv.weight", tensor.layer) : tensor.gguf_name;
}

GgufMetadata shared_keys(const Checkpoint& source, const Vocabulary* vocabulary) {
  const int64_t n_vocab = source.spec().n_vocab;
  std::map<std::string, std::string> description = source.description();
  GgufMetadata tokenizer;
  if (const fs::path path = keys_file(source); !path.empty()) {
    const GgufFile file = GgufFile::open(path);
    with_context(path.string(), [&] { copy_verbatim(file.metadata(), n_vocab, tokenizer); });
    for (const char* key : kDescription) {
      const GgufValue* value = file.metadata().find(fmt::format("general.{}", key));
      if (value != nullptr && std::holds_alternative<std::string>(*value))
        description.emplace(key, std::get<std::string>(*value));
    }
  }
  if (!tokenizer.contains("tokenizer.ggml.model")) add_vocabulary(vocabulary, n_vocab, tokenizer);

  GgufMetadata keys;
  for (const char* key : kDescription) {
    if (const auto place = description.find(key); place != description.end())
      keys.set(fmt::format("general.{}", key), place->second);
  }
  for (const auto& [key, value] : tokenizer.entries()) keys.set(key, value);
  return keys;
}

GgufMetadata model_keys(const ModelSpec& model, const GgufArchitecture& architecture,
                        const WeightType& type) {
  GgufMetadata keys;
  keys.set("general.architecture", std::string(architecture.name));
  keys.set("general.type", std::string("model"));
  keys.set("general.file_type", type.file_type());
  if (!type.is_float()) keys.set("general.quantization_version", uint32_t{2});

  const auto set = [&](std::string_view key, GgufValue value) {
    keys.set(fmt::format("{}.{}", architecture.name, key), std::move(value));
  };
  const auto head_dim = static_cast<uint32_t>(model.head_dim);
  std::vector<int64_t> heads = model.layer_kv_heads;
  for (size_t l = 0; l < heads.size(); ++l) heads[l] *= model.layers.at(l).heads_per_group;
  const LayerSpec& layer = model.layer(0);  // choose_architecture() makes sure that all layers are alike
  // llama.cpp's graphs have full attention, which equals a sliding window up to the window's length.
  const int64_t context =
      layer.sliding_window > 0 ? std::min(model.max_seq, layer.sliding_window) : model.max_seq;

  set("block_count", static_cast<uint32_t>(model.n_layers));
  set("context_length",
      static_cast<uint32_t>(std::min<int64_t>(context, std::numeric_limits<uint32_t>::max())));
  set("embedding_length", static_cast<uint32_t>(model.d_model));
  set("feed_forward_length", widths_value(model.layer_d_ff));
  set("attention.head_count", widths_value(heads));
  set("attention.head_count_kv", widths_value(model.layer_kv_heads));
  set("attention.layer_norm_rms_epsilon", static_cast<float>(model.norm_eps));
  set("attention.key_length", head_dim);
  set("attention.value_length", head_dim);
  set("rope.dimension_count", head_dim);
  set("rope.freq_base", static_cast<float>(layer.rope_theta));
  if (layer.rope.kind == RopeScaling::Kind::kLinear) {
    set("rope.scaling.type", std::string("linear"));
    set("rope.scaling.factor", static_cast<float>(layer.rope.factor));
  }
  set("vocab_size", static_cast<uint32_t>(model.n_vocab));
  return keys;
}

std::vector<TensorInfo> gguf_tensors(const ModelSpec& model, const GgufArchitecture& architecture,
                                     const WeightType& type, bool fused_qkv) {
  std::vector<TensorInfo> tensors;
  if (const auto factors = rope_factors(model); !factors.empty())
    tensors.push_back({"rope_freqs.weight", DType::kF32, {static_cast<int64_t>(factors.size())}});
  for (const TensorSpec& tensor : model.tensors) {
    std::string name = name_in_file(tensor, architecture);
    if (!tensors.empty() && tensors.back().name == name) {  // fused: q, k and v follow each other
      tensors.back().shape[0] += tensor.shape[0];
      continue;
    }
    tensors.push_back({std::move(name), type.of(tensor, model, fused_qkv), tensor.shape});
  }
  return tensors;
}

std::vector<float> rope_factors(const ModelSpec& model) {
  const LayerSpec& layer = model.layer(0);
  const bool uneven =
      layer.rope.kind == RopeScaling::Kind::kLlama3 || layer.rope.kind == RopeScaling::Kind::kFactors;
  return uneven ? rope_frequency_divisors(layer, model.head_dim) : std::vector<float>();
}

}  // namespace elastify::exporter
