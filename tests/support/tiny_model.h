#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "io/dtype.h"
#include "model/plan.h"
#include "model/spec.h"

namespace elastify::test {

/// A decoder that runs in milliseconds. Parts that a family always has (biases of qwen2, q/k norms of qwen3)
/// are always there.
struct TinyOptions {
  int64_t n_layers = 2, d_model = 32, head_dim = 8, n_kv_heads = 2, heads_per_group = 2;
  int64_t d_ff = 64, n_vocab = 96, max_seq = 64;
  bool tied = false;
  bool attention_bias = false, mlp_bias = false;  ///< if the family's config.json has the key
  bool llama3_rope = false;
  int64_t sliding_window = 0;  ///< mistral
};

ModelSpec make_tiny_spec(const std::string& family, const TinyOptions& options = {});

struct TinyVariant {
  std::string name;
  ModelSpec spec;
};
/// Every family, with one KV head per query head and with shared ones, tied and untied, with and without
/// biases, heads wider than d_model / n_heads, scaled rotary frequencies, a sliding window.
std::vector<TinyVariant> tiny_variants();

/// Models with features of future families, several in each: GELU, norm weights with an offset,
/// norms after each half, and windows, rotary bases and query heads per K/V head that differ by layer. No
/// file format expresses such models: memory_checkpoint() makes their weights.
std::vector<TinyVariant> peculiar_variants();

/// Widths for a model with four layers: the attention of layer 1 and all of layer 2 are left out, the rest is
/// full.
Widths shallow_widths(const ModelSpec& spec);
/// Level 0.6 with these widths, and level 0.3, which also leaves out the last layer's attention and some
/// units of the remaining halves.
ElasticPlan shallow_plan(const ModelSpec& spec, int64_t grid = 8);

/// Weights of one tensor of a tiny model: noise that depends on the seed and the name; around 1 for norms.
std::vector<float> tiny_weights(const TensorSpec& tensor, uint64_t seed);

/// Writes config.json and model.safetensors with tiny_weights() into `directory`, which is created if needed.
void write_tiny_hf_model(const ModelSpec& spec, const fs::path& directory, uint64_t seed,
                         DType dtype = DType::kF32);

}  // namespace elastify::test
