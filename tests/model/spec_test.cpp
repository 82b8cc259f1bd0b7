#include "model/spec.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include "support/errors.h"
#include "support/tiny_model.h"

using namespace elastify;
using elastify::test::make_tiny_spec;
using elastify::test::message_of;
using elastify::test::TinyVariant;

TEST_CASE("spec: spaces and tensors come in file order") {
  const ModelSpec spec = make_tiny_spec("llama");
  REQUIRE(spec.spaces.size() == 4);
  CHECK(spec.spaces[0].name == "layers.0.attn");
  CHECK(spec.spaces[1].name == "layers.0.mlp");
  CHECK(spec.spaces[3].name == "layers.1.mlp");
  CHECK(spec.spaces[spec.attention_space(1)].name == "layers.1.attn");
  CHECK(spec.spaces[spec.mlp_space(1)].n_units == 64);
  CHECK(spec.tensors.front().name == "model.embed_tokens.weight");
  CHECK(spec.tensors[1].name == "model.layers.0.input_layernorm.weight");
  CHECK(spec.tensors[10].name == "model.layers.1.input_layernorm.weight");
  CHECK(spec.tensors[spec.tensors.size() - 2].name == "model.norm.weight");
  CHECK(spec.tensors.back().name == "lm_head.weight");
}

TEST_CASE("spec: tensors are found by role and by name, absent ones are not") {
  const ModelSpec spec = make_tiny_spec("qwen2", {.tied = true});
  const int64_t query_bias = spec.find(Role::kQueryBias, 1);
  REQUIRE(query_bias >= 0);
  CHECK(spec.tensors[static_cast<size_t>(query_bias)].name == "model.layers.1.self_attn.q_proj.bias");
  CHECK(spec.find("model.layers.1.self_attn.q_proj.bias") == query_bias);
  CHECK(spec.find(Role::kOutput) == -1);
  CHECK(spec.find(Role::kQueryNorm, 0) == -1);
  CHECK(spec.find(Role::kQuery, 2) == -1);
  CHECK(spec.find("lm_head.weight") == -1);
}

TEST_CASE("spec: weights are counted whole, per layer and per unit") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Widths full = full_widths(spec);
  const int64_t layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32 + 2 * 32;
  CHECK(n_decoder_params(spec, full) == 2 * layer);
  CHECK(n_params(spec, full) == 2 * layer + 2 * 96 * 32 + 32);
  CHECK(n_params(make_tiny_spec("llama", {.tied = true}), full) == 2 * layer + 96 * 32 + 32);
  CHECK(params_per_unit(spec, spec.mlp_space(0)) == 3 * 32);
  CHECK(params_per_unit(spec, spec.attention_space(0)) == 2 * 16 * 32 + 2 * 8 * 32);
}

TEST_CASE("spec: a narrower sub-model loses exactly its units' weights") {
  for (const TinyVariant& variant : test::tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    Widths widths = full_widths(spec);
    const int64_t all = n_params(spec, widths);
    widths[spec.attention_space(1)] -= 1;
    widths[spec.mlp_space(0)] -= 10;
    const int64_t lost =
        params_per_unit(spec, spec.attention_space(1)) + 10 * params_per_unit(spec, spec.mlp_space(0));
    CHECK(n_params(spec, widths) == all - lost);

    const ModelSpec narrow = narrowed(spec, widths);
    CHECK_FALSE(narrow.is_uniform());
    CHECK(narrow.n_kv_heads() == spec.n_kv_heads());
    CHECK(full_widths(narrow) == widths);
    CHECK(n_params(narrow, full_widths(narrow)) == all - lost);
    REQUIRE(narrow.tensors.size() == spec.tensors.size());
    for (size_t i = 0; i < spec.tensors.size(); ++i)
      CHECK(narrow.tensors[i].shape == shape_at(spec.tensors[i], widths));
  }
}

TEST_CASE("spec: widths out of range are refused by name") {
  const ModelSpec spec = make_tiny_spec("llama");
  CHECK(message_of([&] { narrowed(spec, {2, 64, 2}); }) == "widths are given for 3 spaces, expected 4");
  CHECK(message_of([&] { narrowed(spec, {2, 64, 3, 64}); }) == "layers.1.attn: width is 3, expected 0 to 2");
  CHECK(message_of([&] { narrowed(spec, {2, 64, 2, -1}); }) == "layers.1.mlp: width is -1, expected 1 to 64");
}

TEST_CASE("spec: halves of layers that are left out take their norms and biases with them") {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    CAPTURE(family);
    const bool biased = std::string(family) == "llama";
    const ModelSpec spec =
        make_tiny_spec(family, {.n_layers = 4, .attention_bias = biased, .mlp_bias = biased});
    const Widths widths = test::shallow_widths(spec);
    const ModelSpec narrow = narrowed(spec, widths);
    CHECK(narrow.layer_kv_heads == std::vector<int64_t>{2, 0, 0, 2});
    CHECK(narrow.layer_d_ff == std::vector<int64_t>{64, 64, 0, 64});
    CHECK(narrow.n_kv_heads() == 2);
    CHECK_FALSE(narrow.is_uniform());
    CHECK(full_widths(narrow) == widths);
    int64_t left = 0;
    for (const TensorSpec& tensor : spec.tensors) {
      CAPTURE(tensor.name);
      const bool attention = tensor.name.find("self_attn") != std::string::npos ||
                             tensor.name.find("input_layernorm") != std::string::npos;
      const bool kept = tensor.layer == 2 ? false : tensor.layer != 1 || !attention;
      CHECK(is_kept(spec, tensor, widths) == kept);
      CHECK((narrow.find(tensor.name) >= 0) == kept);
      if (kept) left += n_elements(tensor.shape);
    }
    CHECK(n_params(spec, widths) == left);
    CHECK(n_params(narrow, widths) == left);
    CHECK(n_decoder_params(spec, widths) == n_decoder_params(narrow, widths));
    CHECK(params_per_unit(narrow, narrow.mlp_space(2)) == 0);
    CHECK(spec_hash(narrow) != spec_hash(spec));
    CHECK(message_of([&] { require_all_halves(spec, "reordering"); }) == "no error");
    CHECK(message_of([&] { require_all_halves(narrow, "reordering"); }) ==
          "layers.1.attn has no units: reordering takes a model whose layers are complete");
  }
}

TEST_CASE("spec: what stock runtimes compute wrongly without is not left out, in widths and in models") {
  struct Case {
    Widths widths;
    std::string place, reason, hint, dimension;
  };
  const std::string drop = "keep some of its units, or drop another layer";
  const std::vector<Case> cases{
      {{0, 64, 2, 64, 2, 64},
       "layers.0.attn: width is 0, expected 1 to 2",
       "stock runtimes read the size of a head from layer 0",
       drop,
       "number of kv heads of layer 0 is 0, expected 1 to 1048576"},
      {{2, 64, 2, 0, 2, 64},
       "layers.1.mlp: width is 0 beside 2 kv groups, expected 1 to 64",
       "stock runtimes leave out the attention of a layer without an mlp, too",
       "keep some neurons, or drop the layer's attention as well",
       "mlp width of layer 1 is 0, expected 1 to 16777216"},
      {{2, 64, 2, 64, 0, 0},
       "layers.2.mlp: width is 0, expected 1 to 64",
       "stock runtimes stop at a last layer without an mlp",
       drop,
       "mlp width of layer 2 is 0, expected 1 to 16777216"},
      {{2, 64, 2, 64, 1, 0},
       "layers.2.mlp: width is 0 beside 1 kv groups, expected 1 to 64",
       "stock runtimes leave out the attention of a layer without an mlp, too",
       drop,
       "mlp width of layer 2 is 0, expected 1 to 16777216"},
  };
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 3});
  for (const Case& each : cases) {
    CAPTURE(each.place);
    CHECK(message_of([&] { check_droppable(spec, each.widths); }) == each.place + ": " + each.reason);
    CHECK(message_of([&] { check_widths(spec, each.widths); }) == each.place + ": " + each.reason);
    CHECK(test::hint_of([&] { check_widths(spec, each.widths); }) == each.hint);
    ModelSpec made = spec;
    for (size_t i = 0; i < 3; ++i) {
      made.layer_kv_heads[i] = each.widths[2 * i];
      made.layer_d_ff[i] = each.widths[2 * i + 1];
    }
    CHECK(message_of([&] { complete_spec(made); }) ==
          "inconsistent model dimensions: " + each.dimension + ": " + each.reason);
  }
  for (const Widths& fine : {Widths{2, 64, 0, 64, 2, 64}, Widths{2, 64, 0, 0, 2, 64},
                             Widths{2, 64, 0, 0, 0, 64}, Widths{1, 1, 0, 1, 0, 1}})
    CHECK(message_of([&] { check_widths(spec, fine); }) == "no error");
}

TEST_CASE("spec: the hash tells shapes apart and nothing else") {
  const ModelSpec spec = make_tiny_spec("llama");
  CHECK(spec_hash(spec).size() == 64);
  ModelSpec same = spec;
  same.norm_eps = 9.99999974e-06;
  for (LayerSpec& layer : same.layers) layer.rope_theta = 500000;
  CHECK(spec_hash(same) == spec_hash(spec));
  CHECK(spec_hash(make_tiny_spec("mistral")) == spec_hash(spec));
  CHECK(spec_hash(make_tiny_spec("llama", {.d_ff = 63})) != spec_hash(spec));
  CHECK(spec_hash(make_tiny_spec("llama", {.tied = true})) != spec_hash(spec));
  CHECK(spec_hash(make_tiny_spec("llama", {.n_kv_heads = 1, .heads_per_group = 4})) != spec_hash(spec));
  CHECK(spec_hash(make_tiny_spec("llama", {.head_dim = 4, .n_kv_heads = 4})) != spec_hash(spec));
  CHECK(spec_hash(make_tiny_spec("qwen2")) != spec_hash(spec));
}

TEST_CASE("spec: query heads that differ by layer have axes, counts and a hash of their own") {
  const ModelSpec same = make_tiny_spec("llama");
  ModelSpec spec = same;
  spec.layers[1].heads_per_group = 3;
  complete_spec(spec);
  CHECK(spec.n_heads() == 6);
  for (const int64_t layer : {0, 1}) {
    const TensorSpec& query = spec.tensors.at(static_cast<size_t>(spec.find(Role::kQuery, layer)));
    CHECK(query.shape == Shape{layer == 0 ? 32 : 48, 32});
    CHECK(query.axes[0].block == (layer == 0 ? 16 : 24));
  }
  CHECK(spec_hash(spec) != spec_hash(same));
}

TEST_CASE("spec: what a layer computes that llama's do not is listed") {
  ModelSpec spec = make_tiny_spec("llama");
  CHECK(layer_peculiarities(spec).empty());
  spec.layers[0] = {.activation = Activation::kGeluTanh,
                    .norm_offset = 1,
                    .heads_per_group = 1,
                    .sliding_window = 8,
                    .rope_theta = 500000};
  spec.tensors.push_back(
      {.role = Role::kFfnPostNorm, .layer = 0, .name = "n", .gguf_name = "n", .shape = {32}, .axes = {{}}});
  CHECK(layer_peculiarities(spec) ==
        std::vector<std::string>{
            "gelu in the mlp", "norm weights with an offset", "norms after attention or mlp",
            "query heads per kv head that differ by layer", "sliding windows that differ by layer",
            "rotary frequencies that differ by layer"});
}

TEST_CASE("spec: dimensions that make no sense are listed, all of them") {
  ModelSpec spec = make_tiny_spec("llama");
  spec.d_model = 0;
  spec.head_dim = 7;
  spec.norm_eps = NAN;
  CHECK(message_of([&] { complete_spec(spec); }) ==
        "inconsistent model dimensions: model width is 0, expected 1 to 16777216; head_dim is 7, expected "
        "an even "
        "number; norm epsilon is nan, expected a positive number");

  struct Case {
    std::string message;
    std::function<void(ModelSpec&)> spoil;
  };
  const std::vector<Case> cases{
      {"number of layers is 0, expected 1 to 1024", [](ModelSpec& s) { s.n_layers = 0; }},
      {"number of layers is 9223372036854775807, expected 1 to 1024",
       [](ModelSpec& s) { s.n_layers = INT64_MAX; }},
      {"number of kv heads is given for 1 layers, expected 2", [](ModelSpec& s) { s.layer_kv_heads = {2}; }},
      {"number of kv heads of layer 1 is -1, expected 0 to 1048576",
       [](ModelSpec& s) {
         s.layer_kv_heads = {2, -1};
       }},
      {"mlp width of layer 0 is -5, expected 1 to 16777216",
       [](ModelSpec& s) {
         s.layer_d_ff = {-5, 3};
       }},
      {"mlp width of layer 1 is 9223372036854775807, expected 1 to 16777216",
       [](ModelSpec& s) {
         s.layer_d_ff = {1, INT64_MAX};
       }},
      {"vocabulary size is 4611686018427387904, expected 1 to 268435456",
       [](ModelSpec& s) { s.n_vocab = int64_t{1} << 62; }},
      {"context length is 0, expected 1 to 1099511627776", [](ModelSpec& s) { s.max_seq = 0; }},
      {"layer 1: query heads per kv head is 0, expected 1 to 65536",
       [](ModelSpec& s) { s.layers[1].heads_per_group = 0; }},
      {"layer 1: sliding window is -1, expected 0 to 1099511627776",
       [](ModelSpec& s) { s.layers[1].sliding_window = -1; }},
      {"layer 1: rope theta is 0, expected a positive number",
       [](ModelSpec& s) { s.layers[1].rope_theta = 0; }},
      {"rope scaling factor is inf, expected a positive number",
       [](ModelSpec& s) {
         for (LayerSpec& layer : s.layers)
           layer.rope = {.kind = RopeScaling::Kind::kLinear, .factor = INFINITY, .factors = {}};
       }},
      {"there are 3 rope factors, expected head_dim / 2 = 4",
       [](ModelSpec& s) {
         for (LayerSpec& layer : s.layers)
           layer.rope = {.kind = RopeScaling::Kind::kFactors, .factors = {1, 2, 3}};
       }},
      {"a rope factor is -2, expected a positive number",
       [](ModelSpec& s) {
         for (LayerSpec& layer : s.layers)
           layer.rope = {.kind = RopeScaling::Kind::kFactors, .factors = {1, -2, 3, 4}};
       }},
      {"layer 0: norm offset is inf, expected a finite number",
       [](ModelSpec& s) { s.layers[0].norm_offset = INFINITY; }},
      {"there are specs of 1 layers, expected 2", [](ModelSpec& s) { s.layers.pop_back(); }},
      {"llama models have no norms on q and k", [](ModelSpec& s) { s.qk_norm = true; }},
  };
  for (const Case& each : cases) {
    ModelSpec bad = make_tiny_spec("llama");
    each.spoil(bad);
    CHECK(message_of([&] { complete_spec(bad); }) == "inconsistent model dimensions: " + each.message);
  }
}

TEST_CASE("spec: rotary frequencies are divided as transformers does") {
  LayerSpec layer;
  CHECK(rope_frequency_divisors(layer, 16) == std::vector<float>(8, 1.0F));
  layer.rope.kind = RopeScaling::Kind::kLinear;
  layer.rope.factor = 4;
  CHECK(rope_frequency_divisors(layer, 16) == std::vector<float>(8, 4.0F));

  // Llama 3.1's rule in the form of transformers' _compute_llama3_parameters.
  const ModelSpec spec = make_tiny_spec("llama", {.head_dim = 64, .llama3_rope = true});
  const std::vector<float> divisors = rope_frequency_divisors(spec.layer(0), spec.head_dim);
  REQUIRE(divisors.size() == 32);
  bool smoothed = false;
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double frequency = 1 / std::pow(500000.0, 2.0 * static_cast<double>(i) / 64);
    const double wavelength = 2 * 3.14159265358979323846 / frequency;
    double scaled = frequency;
    if (wavelength > 8192.0 / 1) {
      scaled = frequency / 8;
    } else if (wavelength >= 8192.0 / 4) {
      const double smooth = (8192 / wavelength - 1) / (4 - 1);
      scaled = (1 - smooth) * frequency / 8 + smooth * frequency;
      smoothed = true;
    }
    CHECK(divisors[i] == doctest::Approx(frequency / scaled).epsilon(1e-6));
  }
  CHECK(smoothed);
  CHECK(divisors.front() == 1);
  CHECK(divisors.back() == 8);
}
