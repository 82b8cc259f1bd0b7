#include <doctest/doctest.h>

#include "export/architecture.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using exporter::gguf_architecture;
using test::make_tiny_spec;

/// The same widths in all layers.
Widths uniform(const ModelSpec& spec, int64_t groups, int64_t d_ff) {
  Widths widths = full_widths(spec);
  for (size_t i = 0; i < widths.size(); ++i)
    widths[i] = spec.spaces[i].kind == SpaceKind::kAttention ? groups : d_ff;
  return widths;
}

Widths with_narrow_layer(const ModelSpec& spec, SpaceKind kind) {
  Widths widths = full_widths(spec);
  widths[kind == SpaceKind::kAttention ? spec.attention_space(1) : spec.mlp_space(1)] = 1;
  return widths;
}

std::string refusal(const ModelSpec& spec, const Widths& widths) {
  return test::message_of([&] { gguf_architecture(spec, widths); });
}

}  // namespace

TEST_CASE(
    "architecture: llama and mistral stay llama while all layers are alike, and become deci otherwise") {
  for (const char* family : {"llama", "mistral"}) {
    const ModelSpec spec = make_tiny_spec(family);
    CHECK(gguf_architecture(spec, full_widths(spec)) == "llama");
    CHECK(gguf_architecture(spec, uniform(spec, 1, 33)) == "llama");
    CHECK(gguf_architecture(spec, with_narrow_layer(spec, SpaceKind::kAttention)) == "deci");
    CHECK(gguf_architecture(spec, with_narrow_layer(spec, SpaceKind::kMlp)) == "deci");
  }
  const ModelSpec biased = make_tiny_spec("llama", {.attention_bias = true, .mlp_bias = true});
  CHECK(gguf_architecture(biased, full_widths(biased)) == "llama");
  CHECK(gguf_architecture(biased, with_narrow_layer(biased, SpaceKind::kMlp)) == "deci");
}

TEST_CASE(
    "architecture: qwen2 stays qwen2 while all heads are there and MLPs alike, and becomes deci otherwise") {
  const ModelSpec spec = make_tiny_spec("qwen2");
  CHECK(gguf_architecture(spec, full_widths(spec)) == "qwen2");
  CHECK(gguf_architecture(spec, uniform(spec, 2, 32)) == "qwen2");
  CHECK(gguf_architecture(spec, uniform(spec, 1, 64)) == "deci");  // qwen2's loader needs a square q
  CHECK(gguf_architecture(spec, with_narrow_layer(spec, SpaceKind::kMlp)) == "deci");
  const ModelSpec wide = make_tiny_spec("qwen2", {.head_dim = 16});
  CHECK(gguf_architecture(wide, full_widths(wide)) == "deci");
  const ModelSpec scaled = make_tiny_spec("qwen2", {.llama3_rope = true});  // its graph has no rope factors
  CHECK(gguf_architecture(scaled, full_widths(scaled)) == "deci");
}

TEST_CASE("architecture: qwen3 stays qwen3 while all layers are alike, and becomes openelm if it is tied") {
  const ModelSpec tied = make_tiny_spec("qwen3", {.head_dim = 16, .tied = true});
  CHECK(gguf_architecture(tied, full_widths(tied)) == "qwen3");
  CHECK(gguf_architecture(tied, uniform(tied, 1, 32)) == "qwen3");
  CHECK(gguf_architecture(tied, with_narrow_layer(tied, SpaceKind::kAttention)) == "openelm");

  const ModelSpec untied = make_tiny_spec("qwen3", {.head_dim = 16});
  CHECK(gguf_architecture(untied, uniform(untied, 1, 32)) == "qwen3");
  const Widths narrow = with_narrow_layer(untied, SpaceKind::kMlp);
  CHECK(refusal(untied, narrow) ==
        "stock llama.cpp runs qwen3 with widths that differ by layer only if output and embedding share "
        "their weights, which "
        "this model's do not");
  CHECK(test::hint_of([&] { gguf_architecture(untied, narrow); }).find("uniform") != std::string::npos);
}

TEST_CASE("architecture: what no stock graph computes is refused with the reason") {
  const ModelSpec biased = make_tiny_spec("qwen3", {.tied = true, .attention_bias = true});
  CHECK(refusal(biased, full_widths(biased)) ==
        "no architecture of stock llama.cpp has both norms on q and k and biases");
  const ModelSpec scaled = make_tiny_spec("qwen3", {.tied = true, .llama3_rope = true});
  CHECK(refusal(scaled, full_widths(scaled)) ==
        "no architecture of stock llama.cpp has both norms on q and k and rope factors");
  ModelSpec peculiar = make_tiny_spec("llama");
  peculiar.layers[1].sliding_window = 8;
  peculiar.layers[0].activation = Activation::kGeluTanh;
  CHECK(refusal(peculiar, full_widths(peculiar)) ==
        "no architecture of stock llama.cpp that levels are written as has gelu in the mlp, sliding windows "
        "that differ by layer");
  const ModelSpec deep = make_tiny_spec("llama", {.n_layers = 513});
  CHECK(refusal(deep, full_widths(deep)) == "stock llama.cpp runs at most 512 layers, got 513");
}

TEST_CASE("architecture: levels that leave out attention or layers are deci, or refused with the reason") {
  for (const char* family : {"llama", "mistral", "qwen2"}) {
    const ModelSpec spec = make_tiny_spec(family, {.n_layers = 4});
    for (const Level& level : test::shallow_plan(spec).levels)
      CHECK(gguf_architecture(spec, level.widths) == (level.nominal < 1        ? "deci"
                                                      : spec.family == "qwen2" ? "qwen2"
                                                                               : "llama"));
  }
  for (const bool tied : {true, false}) {
    const ModelSpec spec = make_tiny_spec("qwen3", {.n_layers = 4, .head_dim = 16, .tied = tied});
    const Widths widths = test::shallow_widths(spec);
    CHECK(refusal(spec, widths) ==
          "no architecture of stock llama.cpp has both norms on q and k and layers without attention, which "
          "this level has");
    CHECK(test::hint_of([&] { gguf_architecture(spec, widths); }) ==
          "plan levels that keep the attention of every layer");
  }
}

TEST_CASE("architecture: zeros that deci's loader or graph get wrong are refused") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 3});
  struct Trap {
    Widths widths;
    std::string message;
  };
  for (
      const Trap& trap : std::vector<Trap>{
          {{0, 64, 2, 64, 2, 64},
           "layers.0.attn: width is 0, expected 1 to 2: stock runtimes read the size of a head from layer 0"},
          {{0, 0, 2, 64, 2, 64},
           "layers.0.attn: width is 0, expected 1 to 2: stock runtimes read the size of a head from layer 0"},
          {{2, 64, 1, 0, 2, 64},
           "layers.1.mlp: width is 0 beside 1 kv groups, expected 1 to 64: stock runtimes leave out the "
           "attention of a layer without an mlp, too"},
          {{2, 64, 2, 64, 0, 0},
           "layers.2.mlp: width is 0, expected 1 to 64: stock runtimes stop at a last layer without an mlp"},
          {{2, 64, 2, 64, 2, 0},
           "layers.2.mlp: width is 0 beside 2 kv groups, expected 1 to 64: stock runtimes leave out the "
           "attention of a layer without an mlp, too"}})
    CHECK(refusal(spec, trap.widths) == trap.message);
  // Query heads are always a multiple of the KV heads, because a sub-model keeps whole groups.
  ModelSpec uneven = spec;
  for (LayerSpec& layer : uneven.layers) layer.heads_per_group = 0;
  CHECK(refusal(uneven, full_widths(spec)) ==
        "inconsistent model dimensions: query heads per kv head is 0, expected 1 to 65536");
}

}  // namespace elastify
