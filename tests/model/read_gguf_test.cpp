#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "io/gguf.h"
#include "model/checkpoint.h"
#include "model/rope_order.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// Metadata and tensors of a GGUF file that tests change before they write it.
struct Draft {
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;
  std::vector<HostTensor> data;

  void add(const std::string& name, const HostTensor& tensor) {
    tensors.push_back({name, tensor.dtype, tensor.shape});
    data.push_back(tensor);
  }
  void remove(const std::string& name) {
    const auto place =
        std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo& t) { return t.name == name; });
    REQUIRE(place != tensors.end());
    data.erase(data.begin() + (place - tensors.begin()));
    tensors.erase(place);
  }
  void write(const fs::path& path) const {
    GgufWriter writer(path, metadata, tensors);
    for (const HostTensor& tensor : data) writer.write(tensor.bytes);
    writer.finish();
  }
};

GgufArray per_layer(const std::vector<int64_t>& values) {
  return {std::vector<int32_t>(values.begin(), values.end())};
}

std::vector<int64_t> heads(const ModelSpec& spec) {
  std::vector<int64_t> values = spec.layer_kv_heads;
  for (size_t l = 0; l < values.size(); ++l) values[l] *= spec.layers[l].heads_per_group;
  return values;
}

HostTensor joined(std::initializer_list<HostTensor> parts) {
  std::vector<float> values;
  int64_t rows = 0;
  for (const HostTensor& part : parts) {
    const std::vector<float> more = values_of(part);
    values.insert(values.end(), more.begin(), more.end());
    rows += part.shape[0];
  }
  return tensor_of(values, {rows, parts.begin()->shape[1]});
}

/// The tiny model of `spec` in the form in which llama.cpp's converters write it for `architecture`.
Draft draft_of(const ModelSpec& spec, const std::string& architecture, uint64_t seed) {
  Draft draft;
  GgufMetadata& keys = draft.metadata;
  const auto key = [&](const char* name) { return architecture + "." + name; };
  keys.set("general.architecture", architecture);
  keys.set("general.name", std::string("Tiny"));
  keys.set(key("block_count"), static_cast<uint32_t>(spec.n_layers));
  keys.set(key("context_length"), static_cast<uint32_t>(spec.max_seq));
  keys.set(key("embedding_length"), static_cast<uint32_t>(spec.d_model));
  if (spec.is_uniform()) {
    keys.set(key("feed_forward_length"), static_cast<uint32_t>(spec.d_ff()));
    keys.set(key("attention.head_count"), static_cast<uint32_t>(spec.n_heads()));
    keys.set(key("attention.head_count_kv"), static_cast<uint32_t>(spec.n_kv_heads()));
  } else {
    keys.set(key("feed_forward_length"), per_layer(spec.layer_d_ff));
    keys.set(key("attention.head_count"), per_layer(heads(spec)));
    keys.set(key("attention.head_count_kv"), per_layer(spec.layer_kv_heads));
  }
  keys.set(key("attention.key_length"), static_cast<uint32_t>(spec.head_dim));
  keys.set(key("attention.value_length"), static_cast<uint32_t>(spec.head_dim));
  keys.set(key("attention.layer_norm_rms_epsilon"), static_cast<float>(spec.norm_eps));
  keys.set(key("rope.freq_base"), static_cast<float>(spec.layer(0).rope_theta));

  const bool interleaved = architecture == "llama" || architecture == "deci";
  for (const TensorSpec& tensor : spec.tensors) {
    HostTensor stored = tensor_of(tiny_weights(tensor, seed), tensor.shape);
    const bool rotary = tensor.role == Role::kQuery || tensor.role == Role::kKey ||
                        tensor.role == Role::kQueryBias || tensor.role == Role::kKeyBias;
    if (rotary && interleaved)
      stored = reorder_rope_rows(stored, spec.head_dim, RopeOrder::kHalves, RopeOrder::kInterleaved);
    draft.add(tensor.gguf_name, stored);
  }
  if (architecture == "openelm") {
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
      std::vector<HostTensor> parts;
      for (const char* name : {"q", "k", "v"}) {
        const std::string full = fmt::format("blk.{}.attn_{}.weight", layer, name);
        const auto place = std::find_if(draft.tensors.begin(), draft.tensors.end(),
                                        [&](const TensorInfo& tensor) { return tensor.name == full; });
        parts.push_back(draft.data[static_cast<size_t>(place - draft.tensors.begin())]);
        draft.remove(full);
      }
      draft.add(fmt::format("blk.{}.attn_qkv.weight", layer), joined({parts[0], parts[1], parts[2]}));
    }
  }
  return draft;
}

void check_reads_back(const ModelSpec& spec, const std::string& architecture, const std::string& family) {
  CAPTURE(architecture);
  const TemporaryDirectory directory;
  draft_of(spec, architecture, 5).write(directory / "m.gguf");
  const Checkpoint model = Checkpoint::open(directory / "m.gguf");
  CHECK(model.format() == SourceFormat::kGguf);
  CHECK(model.spec().family == family);
  CHECK(spec_hash(model.spec()) == spec_hash(spec));
  CHECK(model.spec().norm_eps == spec.norm_eps);
  CHECK(model.spec().layer(0).rope_theta == spec.layer(0).rope_theta);
  CHECK(model.spec().layer(0).heads_per_group == spec.layer(0).heads_per_group);
  CHECK(model.description().at("name") == "Tiny");
  REQUIRE(model.spec().tensors.size() == spec.tensors.size());
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    CAPTURE(spec.tensors[i].name);
    const HostTensor tensor = model.load(i);
    CHECK(tensor.shape == spec.tensors[i].shape);
    CHECK(values_of(tensor) == tiny_weights(spec.tensors[i], 5));
  }
}

/// A tiny llama file that a test changes, and the error of opening it.
struct Spoiled {
  TemporaryDirectory directory;
  fs::path path = directory / "m.gguf";
  Draft draft = draft_of(make_tiny_spec("llama"), "llama", 1);

  std::string message() const {
    draft.write(path);
    const std::string text = message_of([&] { Checkpoint::open(path); });
    const std::string prefix = path.string() + ": ";
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
  }
  ModelSpec spec() const {
    draft.write(path);
    return Checkpoint::open(path).spec();
  }
};

}  // namespace

TEST_CASE("read gguf: every architecture comes out in Hugging Face's row order") {
  check_reads_back(make_tiny_spec("llama"), "llama", "llama");
  check_reads_back(
      make_tiny_spec("llama", {.head_dim = 16, .tied = true, .attention_bias = true, .mlp_bias = true}),
      "llama", "llama");
  check_reads_back(make_tiny_spec("mistral"), "llama", "llama");
  check_reads_back(make_tiny_spec("qwen2", {.tied = true}), "qwen2", "qwen2");
  check_reads_back(make_tiny_spec("qwen3", {.head_dim = 16}), "qwen3", "qwen3");
}

TEST_CASE("read gguf: levels whose layers differ in width are read") {
  const auto narrow = [](const ModelSpec& spec) { return narrowed(spec, {1, 40, 2, 17}); };
  check_reads_back(narrow(make_tiny_spec("llama")), "deci", "llama");
  check_reads_back(narrow(make_tiny_spec("qwen2", {.tied = true})), "deci", "llama");
  check_reads_back(narrow(make_tiny_spec("qwen3", {.head_dim = 16, .tied = true})), "openelm", "qwen3");
}

TEST_CASE("read gguf: tensors are views into the file where rows stay put") {
  const TemporaryDirectory directory;
  draft_of(make_tiny_spec("qwen3", {.tied = true}), "openelm", 1).write(directory / "m.gguf");
  const Checkpoint model = Checkpoint::open(directory / "m.gguf");
  for (size_t i = 0; i < model.spec().tensors.size(); ++i)
    CHECK(model.load(i).bytes.data() == model.load(i).bytes.data());
}

TEST_CASE("read gguf: defaults of absent keys are llama.cpp's") {
  Spoiled model;
  for (const char* key : {"llama.attention.head_count_kv", "llama.attention.key_length",
                          "llama.attention.value_length", "llama.rope.freq_base"})
    model.draft.metadata.erase(key);
  CHECK(model.message().starts_with("blk.0.attn_k.weight: expected shape [32, 32], got [16, 32]"));
  model.draft.metadata.set("llama.attention.head_count_kv", uint32_t{2});
  CHECK(model.spec().head_dim == 8);
  CHECK(model.spec().layer(0).rope_theta == 10000);
}

TEST_CASE("read gguf: llama 3's scaling is found again from its divisors") {
  const auto with_factors = [](const std::vector<float>& factors) {
    Spoiled model;
    model.draft = draft_of(make_tiny_spec("llama", {.head_dim = 64, .llama3_rope = true}), "llama", 1);
    model.draft.add("rope_freqs.weight", tensor_of(factors, {static_cast<int64_t>(factors.size())}));
    return model.spec().layer(0).rope;
  };
  const ModelSpec scaled = make_tiny_spec("llama", {.head_dim = 64, .llama3_rope = true});
  for (const double original : {8192.0, 4096.0, 131072.0}) {
    LayerSpec layer = scaled.layer(0);
    layer.rope.original_max_seq = original;
    const RopeScaling rope = with_factors(rope_frequency_divisors(layer, scaled.head_dim));
    CHECK(rope.kind == RopeScaling::Kind::kLlama3);
    CHECK(rope.factor == 8);
    CHECK(rope.original_max_seq == original);
  }
  CHECK(with_factors(std::vector<float>(32, 1.0F)).kind == RopeScaling::Kind::kNone);
  std::vector<float> other(32, 1.0F);
  other[7] = 3;
  const RopeScaling rope = with_factors(other);
  CHECK(rope.kind == RopeScaling::Kind::kFactors);
  CHECK(rope.factors == other);
}

TEST_CASE("read gguf: what cannot be read is refused with the key or tensor at fault") {
  struct Case {
    std::function<void(Draft&)> spoil;
    std::string message;
  };
  const auto set = [](const char* key, GgufValue value) {
    return [key, value](Draft& draft) { draft.metadata.set(key, value); };
  };
  const auto layers = [](std::vector<int32_t> values) { return GgufValue(GgufArray{std::move(values)}); };
  const std::vector<Case> cases{
      {set("general.architecture", std::string("gemma3")),
       "general.architecture \"gemma3\" is not supported; supported are llama, deci, qwen2, qwen3, openelm"},
      {set("general.type", std::string("adapter")), "this is a LoRA adapter, expected a model"},
      {set("general.type", std::string("mmproj")), "general.type is \"mmproj\", expected \"model\""},
      {set("split.count", uint16_t{3}),
       "a part of a model split over 3 files, whose first is named ...-00001-of-00003.gguf"},
      {set("llama.expert_count", uint32_t{8}),
       "llama.expert_count: mixture-of-experts models are not supported"},
      {set("llama.attention.causal", false),
       "llama.attention.causal: models without a causal mask are not supported"},
      {set("llama.block_count", uint32_t{0xffffffff}),
       "llama.block_count: expected 1 to 1024, got 4294967295"},
      {set("llama.attention.head_count", layers({4, 4, 4})),
       "llama.attention.head_count: expected one value or 2, got 3"},
      {set("llama.attention.head_count", layers({4, 0})),
       "layer 1 has 0 heads and 2 kv heads, expected 1 or more of both, or none"},
      {set("llama.attention.head_count_kv", layers({2, 0})),
       "layer 1 has 4 heads and 0 kv heads, expected 1 or more of both, or none"},
      {[&](Draft& d) {
         set("llama.attention.head_count", layers({0, 4}))(d);
         set("llama.attention.head_count_kv", layers({0, 2}))(d);
       },
       "layer 0 has 0 heads and 0 kv heads, expected 1 or more of both"},
      {[&](Draft& d) {
         set("llama.attention.head_count", layers({4, 0}))(d);
         set("llama.attention.head_count_kv", layers({2, 0}))(d);
       },
       "unexpected tensors: blk.1.attn_norm.weight, blk.1.attn_q.weight, blk.1.attn_k.weight, "
       "blk.1.attn_v.weight, blk.1.attn_output.weight"},
      {set("llama.feed_forward_length", layers({0, 64})),
       "inconsistent model dimensions: mlp width of layer 0 is 0, expected 1 to 16777216: stock runtimes "
       "leave out the attention of a layer without an mlp, too"},
      {set("llama.attention.head_count", layers({4, 5})), "layer 1: 5 heads cannot share 2 kv heads equally"},
      {set("llama.attention.head_count", layers({4, 2})),
       "layer 1 has 1 heads per kv head, layer 0 has 2; one number for all layers is supported"},
      {set("llama.attention.head_count", layers({INT32_MAX, INT32_MAX})),
       "layer 0: 2147483647 heads cannot share 2 kv heads equally"},
      {set("llama.attention.value_length", uint32_t{16}),
       "keys of 8 and values of 16 elements per head; expected the same"},
      {set("llama.rope.dimension_count", uint32_t{4}),
       "llama.rope.dimension_count: expected 8 (all of a head), got 4"},
      {set("llama.rope.scaling.type", std::string("yarn")),
       "llama.rope.scaling.type: \"yarn\" is not supported; supported are none, linear"},
      {set("llama.feed_forward_length", layers({64, -64})),
       "inconsistent model dimensions: mlp width of layer 1 is -64, expected 1 to 16777216"},
      {set("llama.embedding_length", uint32_t{0}),
       "inconsistent model dimensions: model width is 0, expected 1 to 16777216"},
      {set("llama.attention.layer_norm_rms_epsilon", 0.0F),
       "inconsistent model dimensions: norm epsilon is 0, expected a positive number"},
      {[](Draft& d) { d.metadata.erase("llama.attention.layer_norm_rms_epsilon"); },
       "llama.attention.layer_norm_rms_epsilon: missing"},
      {[](Draft& d) { d.remove("token_embd.weight"); }, "missing tensors: token_embd.weight"},
      {[](Draft& d) { d.remove("blk.1.ffn_up.weight"), d.remove("blk.0.attn_v.weight"); },
       "missing tensors: blk.0.attn_v.weight, blk.1.ffn_up.weight"},
      {[](Draft& d) { d.add("blk.1.attn_q.bias", tensor_of(std::vector<float>(32), {32})); },
       "missing tensors: blk.0.attn_q.bias, blk.0.attn_k.bias, blk.0.attn_v.bias, blk.1.attn_k.bias, "
       "blk.1.attn_v.bias"},
      {[](Draft& d) { d.add("blk.0.attn_q_norm.weight", tensor_of(std::vector<float>(8), {8})); },
       "unexpected tensors: blk.0.attn_q_norm.weight"},
      {[](Draft& d) {
         d.remove("output_norm.weight"), d.add("output_norm.weight", tensor_of({1, 2}, {2}));
       },
       "output_norm.weight: expected shape [32], got [2]"},
      {[](Draft& d) {
         d.remove("output_norm.weight");
         d.add("output_norm.weight", tensor_of(std::vector<float>(32), {32}, DType::kQ8_0));
       },
       "output_norm.weight: expected a float type, got q8_0"},
      {[](Draft& d) {
         d.add("rope_freqs.weight", tensor_of({1, 2}, {2}));
       },
       "rope_freqs.weight: expected 4 elements, got 2"},
      {[](Draft& d) {
         d.add("rope_freqs.weight", tensor_of({1, 2, NAN, 1}, {4}));
       },
       "rope_freqs.weight: expected positive numbers, got nan"},
      {[](Draft& d) {
         d.add("rope_freqs.weight", tensor_of({1, 2, 3, 1}, {4}));
         d.metadata.set("llama.rope.scaling.factor", 2.0F);
       },
       "rope_freqs.weight together with linear rope scaling is not supported"},
  };
  for (const Case& each : cases) {
    Spoiled model;
    each.spoil(model.draft);
    CHECK(model.message() == each.message);
  }
}

TEST_CASE("read gguf: layers without attention, and without anything, are read with what they have") {
  const ModelSpec full = make_tiny_spec("llama", {.n_layers = 4});
  const ModelSpec spec = narrowed(full, shallow_widths(full));
  const TemporaryDirectory directory;
  draft_of(spec, "deci", 1).write(directory / "m.gguf");
  const Checkpoint model = Checkpoint::open(directory / "m.gguf");
  CHECK(model.spec().layer_kv_heads == std::vector<int64_t>{2, 0, 0, 2});
  CHECK(model.spec().layer_d_ff == std::vector<int64_t>{64, 64, 0, 64});
  CHECK(spec_hash(model.spec()) == spec_hash(spec));
  REQUIRE(model.spec().tensors.size() == spec.tensors.size());
  for (size_t i = 0; i < spec.tensors.size(); ++i)
    CHECK(values_of(model.load(i)) == tiny_weights(spec.tensors[i], 1));
}

TEST_CASE("read gguf: linear scaling and an axis of one in front are accepted") {
  Spoiled model;
  model.draft.metadata.set("llama.rope.scaling.type", std::string("linear"));
  model.draft.metadata.set("llama.rope.scaling.factor", 4.0F);
  model.draft.remove("output_norm.weight");
  model.draft.add("output_norm.weight", tensor_of(std::vector<float>(32, 2.0F), {1, 32}));
  const ModelSpec spec = model.spec();
  CHECK(spec.layer(0).rope.kind == RopeScaling::Kind::kLinear);
  CHECK(spec.layer(0).rope.factor == 4);
  const Checkpoint checkpoint = Checkpoint::open(model.path);
  CHECK(checkpoint.load(static_cast<size_t>(spec.find(Role::kOutputNorm))).shape == Shape{32});
}

TEST_CASE("read gguf: quantised rows are put into Hugging Face's order whole") {
  const ModelSpec spec = make_tiny_spec("llama");
  Spoiled model;
  const std::vector<float> query =
      tiny_weights(spec.tensors[static_cast<size_t>(spec.find(Role::kQuery, 0))], 1);
  const HostTensor quantised = tensor_of(query, {32, 32}, DType::kQ8_0);
  model.draft.remove("blk.0.attn_q.weight");
  model.draft.add("blk.0.attn_q.weight",
                  reorder_rope_rows(quantised, 8, RopeOrder::kHalves, RopeOrder::kInterleaved));
  model.draft.write(model.path);
  const Checkpoint checkpoint = Checkpoint::open(model.path);
  const auto index = static_cast<size_t>(checkpoint.spec().find(Role::kQuery, 0));
  CHECK(checkpoint.stored_dtype(index) == DType::kQ8_0);
  CHECK(checkpoint.lossless_dtype() == DType::kF32);
  CHECK(same_bytes(checkpoint.load(index), quantised));
}

TEST_CASE("read gguf: damaged files are read to the end or refused") {
  const TemporaryDirectory directory;
  const TinyOptions smallest{.d_model = 4, .head_dim = 2, .d_ff = 4, .n_vocab = 4, .tied = true};
  for (const char* architecture : {"deci", "openelm"}) {
    const ModelSpec spec = make_tiny_spec(architecture == std::string("deci") ? "llama" : "qwen3", smallest);
    const bool shallow = architecture == std::string("deci");
    draft_of(narrowed(spec, {1, 2, shallow ? 0 : 2, 4}), architecture, 1).write(directory / "m.gguf");
    const MutationCount count =
        read_mutations(read_text(directory / "m.gguf"), 1500, [](const fs::path& path) {
          const Checkpoint model = Checkpoint::open(path);
          for (size_t i = 0; i < model.spec().tensors.size(); ++i) values_of(model.load(i));
        });
    CHECK(count.accepted > 0);
    CHECK(count.refused > 0);
  }
}

TEST_CASE("read gguf: a vocabulary without a model is refused") {
  if (!has_shared_data()) return;
  const fs::path path = shared_data() / "models/gguf-vocab/ggml-vocab-llama-spm.gguf";
  CHECK(message_of([&] { Checkpoint::open(path); }) == path.string() + ": has a vocabulary, but no tensors");
}
