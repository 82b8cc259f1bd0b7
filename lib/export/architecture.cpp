#include "export/architecture.h"

#include <algorithm>

#include <fmt/ranges.h>

#include "base/error.h"

// The choices below follow the loaders and graphs of llama.cpp, in
// src/models/{llama,deci,qwen2,qwen3,openelm}.cpp and load_hparams() in src/llama-model.cpp. llama, qwen2 and
// qwen3 size every tensor by layer 0. deci is llama's graph with widths by layer. A layer with 0 heads and 0
// KV heads has only its MLP, and one with 0 neurons as well is skipped. deci computes some widths wrongly,
// but these do not occur: check_droppable() refuses them, and sub-models keep whole groups of query heads.

namespace elastify::exporter {
namespace {

constexpr GgufArchitecture kLlama{"llama", RopeOrder::kInterleaved};
constexpr GgufArchitecture kDeci{"deci", RopeOrder::kInterleaved};
constexpr GgufArchitecture kQwen2{"qwen2", RopeOrder::kHalves};
constexpr GgufArchitecture kQwen3{"qwen3", RopeOrder::kHalves};
constexpr GgufArchitecture kOpenElm{"openelm", RopeOrder::kHalves, true};

constexpr int64_t kMaxLayers = 512;  // LLAMA_MAX_LAYERS

bool has_rope_factors(const ModelSpec& model) {
  const RopeScaling::Kind kind = model.layer(0).rope.kind;
  return kind == RopeScaling::Kind::kLlama3 || kind == RopeScaling::Kind::kFactors;
}

/// qwen2's loader takes only a square q and no rope factors. deci computes the same with the biases and q and
/// k rows in its own rope order.
const GgufArchitecture& choose_qwen2(const ModelSpec& model) {
  const bool square = model.n_heads() * model.head_dim == model.d_model;
  return model.is_uniform() && square && !has_rope_factors(model) && !model.mlp_bias && !model.attn_out_bias
             ? kQwen2
             : kDeci;
}

bool leaves_out_halves(const ModelSpec& model) {
  return std::any_of(model.spaces.begin(), model.spaces.end(),
                     [](const AxisSpace& space) { return space.n_units == 0; });
}

const GgufArchitecture& choose_qwen3(const ModelSpec& model) {
  if (model.qkv_bias || model.attn_out_bias || model.mlp_bias)
    fail("no architecture of stock llama.cpp has both norms on q and k and biases");
  if (has_rope_factors(model))
    fail("no architecture of stock llama.cpp has both norms on q and k and rope factors");
  if (leaves_out_halves(model))
    throw Error(
        "no architecture of stock llama.cpp has both norms on q and k and layers without attention, which "
        "this level has",
        "plan levels that keep the attention of every layer");
  if (model.is_uniform()) return kQwen3;
  if (!model.tied)
    throw Error(
        "stock llama.cpp runs qwen3 with widths that differ by layer only if output and embedding share "
        "their weights, "
        "which this model's do not",
        "plan with `uniform`, which keeps all layers equally wide");
  return kOpenElm;
}

}  // namespace

const GgufArchitecture& architecture_named(std::string_view name) {
  for (const GgufArchitecture* each : {&kLlama, &kDeci, &kQwen2, &kQwen3, &kOpenElm})
    if (each->name == name) return *each;
  fail("general.architecture \"{}\": levels are not written in this architecture", name);
}

const GgufArchitecture& choose_architecture(const ModelSpec& model) {
  if (model.n_layers > kMaxLayers)
    fail("stock llama.cpp runs at most {} layers, got {}", kMaxLayers, model.n_layers);
  if (const auto found = layer_peculiarities(model); !found.empty())
    throw Error(fmt::format("no architecture of stock llama.cpp that levels are written as has {}",
                            fmt::join(found, ", ")),
                "such a model can be profiled, reordered and evaluated, but not exported as GGUF");
  if (model.family == "qwen2") return choose_qwen2(model);
  if (model.family == "qwen3") return choose_qwen3(model);
  if (model.family == "llama" || model.family == "mistral") return model.is_uniform() ? kLlama : kDeci;
  fail("no architecture of stock llama.cpp is known for {} models", model.family);
}

std::string gguf_architecture(const ModelSpec& spec, const Widths& widths) {
  return std::string(choose_architecture(narrowed(spec, widths)).name);
}

}  // namespace elastify::exporter
