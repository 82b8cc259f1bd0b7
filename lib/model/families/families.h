#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/spec.h"

namespace elastify {

/// The size of an axis, and through it the space it belongs to.
enum class Extent : uint8_t {
  kNone,           ///< no such axis
  kModel,          ///< D
  kVocab,          ///< V
  kHeadDim,        ///< one head
  kQueryHeads,     ///< H * head_dim; attention space, blocks of heads_per_group * head_dim
  kKeyValueHeads,  ///< K * head_dim; attention space, blocks of head_dim
  kFeedForward,    ///< F; MLP space, blocks of 1
};

/// When a tensor exists.
enum class Present : uint8_t { kAlways, kUntied, kQkvBias, kAttnOutBias, kMlpBias, kQkNorm };

/// A line of a family's table. "{}" in a name is the layer.
struct TensorRow {
  Role role;
  const char* hf_name;
  const char* gguf_name;
  Extent rows;
  Extent columns = Extent::kNone;
  Present present = Present::kAlways;
};

/// The positions of a rotated pair inside a head. Hugging Face keeps the two elements head_dim/2 apart,
/// GGUF's llama-like architectures keep them side by side.
enum class RopeOrder : uint8_t { kHalves, kInterleaved };

/// How a family reads Hugging Face's config.json, besides the dimensions.
struct ConfigTraits {
  bool attention_bias_key = false;  ///< `attention_bias` adds biases to q, k, v and o
  bool mlp_bias_key = false;        ///< `mlp_bias` adds biases to gate, up and down
  bool always_qkv_bias = false;
  bool always_qk_norm = false;
  bool sliding_window_key = false;     ///< `sliding_window` holds for every layer
  bool sliding_window_switch = false;  ///< ... but only with `use_sliding_window`, which is not supported
  bool default_tied = false;           ///< `tie_word_embeddings` if absent
  double default_theta = 10000;
  int64_t default_max_seq = 2048;      ///< `max_position_embeddings` where absent
  int64_t default_head_dim = 0;        ///< `head_dim` where absent; 0: model width / heads
  int64_t default_sliding_window = 0;  ///< `sliding_window` where absent (null means none)
};

/// One architecture, as a table. Nothing else in the project depends on the family. `layer` states how its
/// layers compute; the configuration may change it. A norm after a half of a layer is a row with the role
/// kAttnPostNorm or kFfnPostNorm.
struct Family {
  const char* name;             ///< also model_type in config.json
  const char* hf_architecture;  ///< "LlamaForCausalLM"
  const char* gguf_architecture;
  RopeOrder gguf_rope;
  ConfigTraits config;
  LayerSpec layer = {};  ///< of every layer, before the configuration is read
  std::vector<TensorRow> tensors;
};

std::span<const Family> families();
/// \throws Error  naming what was found and what is supported
const Family& family_named(std::string_view name);

// The tables, one file each.
Family llama_family();
Family mistral_family();
Family qwen2_family();
Family qwen3_family();

// Parts that several tables share.
std::vector<TensorRow> embedding_rows();
std::vector<TensorRow> attention_rows();
std::vector<TensorRow> qkv_bias_rows();
std::vector<TensorRow> qk_norm_rows();
std::vector<TensorRow> gated_mlp_rows();
std::vector<TensorRow> output_rows();
std::vector<TensorRow> join(std::initializer_list<std::vector<TensorRow>> parts);

}  // namespace elastify
