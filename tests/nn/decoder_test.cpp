#include "nn/decoder.h"

#include <vector>

#include "io/safetensors.h"
#include "nn/host_tensor.h"
#include "nn/sample.h"
#include "support/decoders.h"
#include "support/errors.h"
#include "support/half_gradients.h"
#include "support/reference_decoder.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// Final hidden states of the reference, in float64.
at::Tensor reference_hidden(const Checkpoint& checkpoint, const at::Tensor& ids,
                            const Widths* widths = nullptr) {
  return ReferenceDecoder(checkpoint).hidden(ids, {.widths = widths}).detach();
}

std::vector<TinyVariant> all_variants() {
  std::vector<TinyVariant> variants = tiny_variants();
  for (const TinyVariant& each : peculiar_variants()) variants.push_back(each);
  return variants;
}

}  // namespace

TEST_CASE("decoder: a layer is its attention half and then its MLP half") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const c10::NoGradGuard no_gradients;
    const nn::Decoder decoder(tiny_checkpoint(variant.spec), {});
    const at::Tensor x = decoder.embed(random_ids(2, 9, variant.spec.n_vocab));
    nn::ForwardOptions attention, mlp;
    attention.half = nn::Half::kAttention;
    mlp.half = nn::Half::kMlp;
    const at::Tensor middle = decoder.layer(1, x, attention);
    CHECK(relative_difference(middle, decoder.trace(1, x).middle) < 1e-6);
    CHECK(relative_difference(decoder.layer(1, middle, mlp), decoder.layer(1, x)) < 1e-6);
  }
}

TEST_CASE("decoder: logits are those of transformers, for every fixture, and so are the reference's") {
  const fs::path root = fs::path(ELASTIFY_SOURCE_DIR) / "tests/data/hf";
  int n_fixtures = 0;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (!entry.is_directory()) continue;
    CAPTURE(entry.path().filename().string());
    const auto expected = SafetensorsFile::open(entry.path() / "expected.safetensors");
    const at::Tensor ids = nn::as_tensor(expected.tensor("ids")).to(at::kLong).unsqueeze(0);
    const at::Tensor logits = nn::as_tensor(expected.tensor("logits"));
    const Checkpoint checkpoint = Checkpoint::open(entry.path());
    const nn::Decoder decoder(checkpoint, {});
    const ReferenceDecoder reference(checkpoint);
    CHECK(relative_difference(decoder.logits(decoder.hidden(ids))[0], logits) < 1e-4);
    CHECK(relative_difference(reference.logits(reference.hidden(ids, {}))[0], logits) < 1e-4);
    ++n_fixtures;
  }
  CHECK(n_fixtures >= 10);
}

TEST_CASE("decoder: on sequences longer than a block of queries it is the reference, windows included") {
  for (const int64_t window : {0, 20, 150}) {
    CAPTURE(window);
    const Checkpoint checkpoint =
        tiny_checkpoint(make_tiny_spec("mistral", {.max_seq = 400, .sliding_window = window}));
    const at::Tensor ids = random_ids(2, 300, 96);
    CHECK(relative_difference(nn::Decoder(checkpoint, {}).hidden(ids), reference_hidden(checkpoint, ids)) <
          1e-4);
  }
}

TEST_CASE("decoder: layers that differ in all that the next families have are the reference's") {
  for (const TinyVariant& variant : peculiar_variants()) {
    CAPTURE(variant.name);
    const Checkpoint checkpoint = memory_checkpoint(variant.spec);
    const Widths narrow = half_widths(variant.spec);
    const nn::LevelRepair repairs = random_repairs(variant.spec, narrow, true);
    const at::Tensor ids = random_ids(2, 17, variant.spec.n_vocab);
    const nn::Decoder decoder(checkpoint, {}), streamed(checkpoint, {.streamed = true});
    nn::ForwardOptions options;
    CHECK(relative_difference(decoder.hidden(ids), reference_hidden(checkpoint, ids)) < 1e-4);
    options.widths = &narrow;
    options.repairs = &repairs;
    const at::Tensor found = decoder.hidden(ids, options);
    const at::Tensor expected =
        ReferenceDecoder(checkpoint).hidden(ids, {.widths = &narrow, .repairs = &repairs}).detach();
    CHECK(relative_difference(found, expected) < 1e-4);
    CHECK(at::equal(streamed.hidden(ids, options), found));
    nn::KvCache cache;
    std::vector<at::Tensor> parts;
    for (const int64_t first : {0, 6, 7})
      parts.push_back(decoder.hidden(ids.narrow(1, first,
                                                first == 0   ? 6
                                                : first == 6 ? 1
                                                             : 10),
                                     options, &cache));
    CHECK(relative_difference(at::cat(parts, 1), found) < 1e-5);
  }
}

TEST_CASE("decoder: a level run as views equals the sliced model, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const Checkpoint checkpoint = tiny_checkpoint(variant.spec);
    const Widths widths = half_widths(variant.spec);
    const nn::Decoder full(checkpoint, {}), sub(sliced_checkpoint(checkpoint, widths), {});
    const at::Tensor ids = random_ids(3, 17, variant.spec.n_vocab);
    nn::ForwardOptions options;
    options.widths = &widths;
    CHECK(relative_difference(full.hidden(ids, options), sub.hidden(ids)) < 1e-5);
    CHECK(relative_difference(full.hidden(ids, options), reference_hidden(checkpoint, ids, &widths)) < 1e-4);
  }
}

TEST_CASE("decoder: leaving units out equals masking them with zero, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const Checkpoint checkpoint = tiny_checkpoint(variant.spec);
    const Widths widths = half_widths(variant.spec);
    const at::Tensor ids = random_ids(2, 11, variant.spec.n_vocab);
    auto masks = unit_masks(full_widths(variant.spec), 2, false);
    for (size_t s = 0; s < masks.size(); ++s)
      masks[s].narrow(1, widths[s], masks[s].size(1) - widths[s]).zero_();
    nn::ForwardOptions narrow;
    narrow.widths = &widths;
    const at::Tensor expected = ReferenceDecoder(checkpoint).hidden(ids, {.unit_masks = &masks});
    CHECK(relative_difference(nn::Decoder(checkpoint, {}).hidden(ids, narrow), expected) < 1e-4);
  }
}

namespace {

/// Gradients of the loss of a whole model, by the backward pass through all layers.
struct WholeModelGradients {
  at::Tensor nll, input, output_norm;
  std::vector<nn::LayerGradients> layers;  ///< [n_layers]

  WholeModelGradients(const nn::Decoder& decoder, const at::Tensor& ids, const nn::ForwardOptions& options)
      : layers(static_cast<size_t>(decoder.spec().n_layers)) {
    std::vector<nn::LayerTrace> traces;
    at::Tensor x = decoder.embed(ids);
    for (int64_t l = 0; l < decoder.spec().n_layers; ++l) {
      traces.push_back(decoder.trace(l, x, options));
      CHECK(at::equal(traces.back().output, decoder.layer(l, x, options)));
      x = traces.back().output;
    }
    const auto loss = decoder.loss_and_gradient(x, ids, options);
    nll = loss.nll;
    output_norm = loss.output_norm;
    input = loss.gradient;
    for (size_t l = layers.size(); l-- > 0;) {
      layers[l] = decoder.backward(static_cast<int64_t>(l), traces[l], input, options);
      input = layers[l].input;
    }
  }
};

}  // namespace

TEST_CASE("decoder: the way back by hand gives autograd's gradients, at every width, with all repairs") {
  for (const TinyVariant& variant : all_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    const Checkpoint checkpoint = memory_checkpoint(spec);
    const nn::Decoder decoder(checkpoint, {});
    const ReferenceDecoder reference(checkpoint);
    const at::Tensor ids = random_ids(3, 17, spec.n_vocab);
    for (const Widths& widths : {full_widths(spec), half_widths(spec)}) {
      nn::LevelRepair repairs = random_repairs(spec, widths, true);
      for (const nn::LevelRepair* chosen :
           {static_cast<const nn::LevelRepair*>(nullptr), static_cast<const nn::LevelRepair*>(&repairs)}) {
        CAPTURE((chosen != nullptr));
        nn::ForwardOptions options;
        options.widths = &widths;
        options.repairs = chosen;
        const WholeModelGradients found(decoder, ids, options);
        const auto masks = unit_masks(widths, 3, true);
        at::Tensor x = reference.embed(ids).detach().requires_grad_();
        const at::Tensor input = x;
        const ReferenceDecoder::Options same{.widths = &widths, .repairs = chosen, .unit_masks = &masks};
        for (int64_t l = 0; l < spec.n_layers; ++l) x = reference.layer(l, x, same);
        const at::Tensor nll = reference.token_nll(reference.final_norm(x, same), ids).sum(1);
        CHECK(relative_difference(found.nll, nll) < 1e-5);
        const auto gradient = [&](const at::Tensor& by) {
          return torch::autograd::grad({nll.sum()}, {by}, {}, true)[0];
        };
        CHECK(relative_difference(found.input, gradient(input)) < 5e-4);
        for (int64_t l = 0; l < spec.n_layers; ++l) {
          CAPTURE(l);
          const nn::LayerGradients& layer = found.layers[static_cast<size_t>(l)];
          const size_t attention = spec.attention_space(l), mlp = spec.mlp_space(l);
          const at::Tensor by_unit = layer.attention_masks.view({3, widths[attention], -1}).sum(2);
          CHECK(relative_difference(by_unit, gradient(masks[attention])) < 5e-4);
          CHECK(relative_difference(layer.mlp_masks, gradient(masks[mlp])) < 5e-4);
          if (chosen == nullptr) {
            CHECK(layer.repairs.empty());
            continue;
          }
          for (const FoundGradient& each :
               gradients_of_repairs(chosen->layers[static_cast<size_t>(l)], layer.repairs)) {
            CAPTURE(each.name);
            REQUIRE(each.gradient.defined());
            CHECK(relative_difference(each.gradient, gradient(each.tensor)) < 5e-4);
          }
        }
        REQUIRE(found.output_norm.defined() == (chosen != nullptr));
        if (chosen != nullptr)
          CHECK(relative_difference(found.output_norm, gradient(chosen->output_norm)) < 5e-4);
      }
    }
  }
}

TEST_CASE("decoder: the gradient of a unit's mask is the slope of the loss") {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    CAPTURE(family);
    const ModelSpec spec = make_tiny_spec(family);
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const nn::Decoder decoder(checkpoint, {});
    const ReferenceDecoder reference(checkpoint);
    const at::Tensor ids = random_ids(2, 16, spec.n_vocab);
    const WholeModelGradients found(decoder, ids, {});
    const c10::NoGradGuard no_gradients;
    const auto masks = unit_masks(full_widths(spec), 2, false);
    for (size_t s = 0; s < masks.size(); ++s) {
      const nn::LayerGradients& layer = found.layers[s / 2];
      const at::Tensor by_column = s % 2 == 0 ? layer.attention_masks : layer.mlp_masks;
      const at::Tensor gradients = by_column.view({2, masks[s].size(1), -1}).sum(2);
      const double scale = gradients.abs().max().item<double>();
      CHECK(scale > 0);
      for (const int64_t unit : {int64_t{0}, masks[s].size(1) - 1}) {
        const double step = 1e-4;
        const auto loss = [&](double value) {
          masks[s][1][unit] = value;
          const double nll = reference.sequence_nll(ids, {.unit_masks = &masks})[1].item<double>();
          masks[s][1][unit] = 1;
          return nll;
        };
        const double slope = (loss(1 + step) - loss(1 - step)) / (2 * step);
        CHECK(gradients[1][unit].item<double>() == doctest::Approx(slope).epsilon(1e-3).scale(scale));
      }
    }
  }
}

TEST_CASE("decoder: gradients of weights are the slopes of the loss, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const nn::Decoder decoder(checkpoint, {});
    const at::Tensor ids = random_ids(2, 13, spec.n_vocab);
    const int64_t layer = 0;
    at::Tensor x = decoder.embed(ids);
    std::vector<nn::LayerTrace> traces;
    for (int64_t l = 0; l < spec.n_layers; ++l) x = traces.emplace_back(decoder.trace(l, x)).output;
    at::Tensor gradient = decoder.loss_and_gradient(x, ids).gradient;
    for (int64_t l = spec.n_layers - 1; l > layer; --l)
      gradient = decoder.backward(l, traces[static_cast<size_t>(l)], gradient).input;
    std::map<Role, at::Tensor> found;
    decoder.backward(layer, traces[0], gradient, {},
                     [&](Role role, const at::Tensor& grad) { found[role] = grad.clone(); });

    size_t n_expected = 0;
    for (size_t i = 0; i < spec.tensors.size(); ++i) {
      const TensorSpec& tensor = spec.tensors[i];
      const bool has_units = std::any_of(tensor.axes.begin(), tensor.axes.end(),
                                         [](const AxisUse& use) { return use.space >= 0; });
      if (tensor.layer != layer || !has_units) continue;
      ++n_expected;
      CAPTURE(tensor.name);
      REQUIRE(found.count(tensor.role) == 1);
      REQUIRE((found[tensor.role].sizes().vec() == tensor.shape));
      // The derivative along a random direction depends on every element of the gradient.
      torch::manual_seed(static_cast<int64_t>(i));
      const at::Tensor direction = torch::randn(tensor.shape);
      const auto loss = [&](double step) {
        const Checkpoint moved = checkpoint.transformed([&](size_t index, const HostTensor& value) {
          if (index != i) return value;
          const at::Tensor weights = at::tensor(values_of(value)).view(tensor.shape) + step * direction;
          return tensor_of({weights.data_ptr<float>(), weights.data_ptr<float>() + weights.numel()},
                           tensor.shape);
        });
        const c10::NoGradGuard no_gradients;
        return nn::Decoder(moved, {}).sequence_nll(ids).sum().item<double>();
      };
      const double step = 1e-3, slope = (loss(step) - loss(-step)) / (2 * step);
      const double scale = found[tensor.role].norm().item<double>();
      CHECK((found[tensor.role] * direction).sum().item<double>() ==
            doctest::Approx(slope).epsilon(0.02).scale(scale));
    }
    CHECK(found.size() == n_expected);
  }
}

TEST_CASE("decoder: streamed, it computes the same with one layer's weights at a time") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const Checkpoint checkpoint = tiny_checkpoint(variant.spec);
    const nn::Decoder resident(checkpoint, {}), streamed(checkpoint, {.streamed = true});
    const at::Tensor ids = random_ids(2, 11, variant.spec.n_vocab);
    const c10::NoGradGuard no_gradients;
    for (int repeat = 0; repeat < 2; ++repeat)
      CHECK(at::equal(streamed.sequence_nll(ids), resident.sequence_nll(ids)));
  }
}

TEST_CASE("decoder: reading a text piece by piece with a cache equals reading it at once") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const nn::Decoder decoder(tiny_checkpoint(variant.spec), {});
    const at::Tensor ids = random_ids(2, 30, variant.spec.n_vocab);
    const Widths widths = half_widths(variant.spec);
    for (const Widths* chosen : {static_cast<const Widths*>(nullptr), &widths}) {
      nn::ForwardOptions options;
      options.widths = chosen;
      const at::Tensor whole = decoder.hidden(ids, options);
      nn::KvCache cache;
      std::vector<at::Tensor> parts;
      int64_t first = 0;
      for (const int64_t n : {7, 1, 1, 12, 1, 8}) {
        parts.push_back(decoder.hidden(ids.narrow(1, first, n), options, &cache));
        first += n;
      }
      CHECK(cache.length == 30);
      CHECK(relative_difference(at::cat(parts, 1), whole) < 1e-5);
    }
  }
}

namespace {

/// The full model with zeros for o and down, and for their biases, of halves that the widths leave out. Such
/// a half adds nothing.
Checkpoint silenced(const Checkpoint& source, const Widths& widths) {
  return source.transformed([&, spec = source.spec()](size_t i, const HostTensor& value) {
    const TensorSpec& tensor = spec.tensors[i];
    const bool adds = tensor.role == Role::kAttnOut || tensor.role == Role::kAttnOutBias ||
                      tensor.role == Role::kDown || tensor.role == Role::kDownBias;
    if (!adds || is_kept(spec, tensor, widths)) return value;
    return tensor_of(std::vector<float>(static_cast<size_t>(n_elements(tensor.shape))), tensor.shape);
  });
}

/// Four layers of every variant.
std::vector<TinyVariant> deep_variants() {
  std::vector<TinyVariant> variants = tiny_variants();
  for (TinyVariant& variant : variants) {
    ModelSpec& spec = variant.spec;
    spec.n_layers = 4;
    spec.layer_kv_heads.resize(4, spec.layer_kv_heads[0]);
    spec.layer_d_ff.resize(4, spec.layer_d_ff[0]);
    spec.layers.resize(4, spec.layers[0]);
    complete_spec(spec);
  }
  return variants;
}

}  // namespace

TEST_CASE("decoder: a half of width 0 adds nothing, its biases included, in every variant") {
  for (const TinyVariant& variant : deep_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const nn::Decoder full(checkpoint, {}), streamed(checkpoint, {.streamed = true});
    const at::Tensor ids = random_ids(2, 19, spec.n_vocab);
    for (const Level& level : shallow_plan(spec).levels) {
      CAPTURE(level.nominal);
      nn::ForwardOptions options;
      options.widths = &level.widths;
      // One level also narrows the remaining halves, so the comparison uses the full halves at these widths.
      Widths others = level.widths;
      for (size_t s = 0; s < others.size(); ++s)
        if (others[s] == 0) others[s] = spec.spaces[s].n_units;
      nn::ForwardOptions rest;
      rest.widths = &others;
      const at::Tensor found = full.hidden(ids, options);
      CHECK(at::equal(found, nn::Decoder(silenced(checkpoint, level.widths), {}).hidden(ids, rest)));
      CHECK(at::equal(streamed.hidden(ids, options), found));
      CHECK(relative_difference(found, reference_hidden(checkpoint, ids, &level.widths)) < 1e-4);
      const nn::Decoder sub(sliced_checkpoint(checkpoint, level.widths), {});
      CHECK(relative_difference(sub.hidden(ids), found) < 1e-5);
    }
  }
}

TEST_CASE("decoder: without a half there is no projection, no input of one, and the way back passes it by") {
  const ModelSpec spec = make_tiny_spec("qwen2", {.n_layers = 4});
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const Widths widths = shallow_widths(spec);
  const nn::Decoder full(checkpoint, {}), sub(sliced_checkpoint(checkpoint, widths), {});
  nn::ForwardOptions options;
  options.widths = &widths;
  const at::Tensor x = full.embed(random_ids(2, 9, spec.n_vocab));
  for (const auto& [decoder, chosen] : {std::pair{&full, &options}, std::pair{&sub, &options}}) {
    CHECK((decoder->projection(1, Site::kAttnOut, widths).sizes().vec() == Shape{32, 0}));
    CHECK((decoder->projection(1, Site::kFfnDown, widths).sizes().vec() == Shape{32, 64}));
    CHECK((decoder->projection(2, Site::kFfnDown, widths).sizes().vec() == Shape{32, 0}));

    const nn::LayerTrace mlp_only = decoder->trace(1, x, *chosen), none = decoder->trace(2, x, *chosen);
    CHECK(at::equal(mlp_only.middle, x));
    CHECK_FALSE(at::equal(mlp_only.output, x));
    CHECK(at::equal(mlp_only.output, decoder->layer(1, x, *chosen)));
    CHECK((decoder->site_input(1, Site::kAttnOut, mlp_only).sizes().vec() == Shape{2, 9, 0}));
    CHECK((decoder->site_input(1, Site::kFfnDown, mlp_only).sizes().vec() == Shape{2, 9, 64}));
    CHECK(at::equal(none.output, x));
    CHECK(at::equal(decoder->layer(2, x, *chosen), x));
    CHECK((decoder->site_input(2, Site::kFfnDown, none).sizes().vec() == Shape{2, 9, 0}));
    const at::Tensor gradient = torch::randn(x.sizes());
    CHECK(at::equal(decoder->backward(2, none, gradient, *chosen).input, gradient));
    const auto back = decoder->backward(1, mlp_only, gradient, *chosen);
    CHECK_FALSE(at::equal(back.input, gradient));
    CHECK((back.attention_masks.sizes().vec() == Shape{2, 0}));
    CHECK((back.mlp_masks.sizes().vec() == Shape{2, 64}));
  }
  const nn::LayerTrace mlp_only = full.trace(1, x, options);
  CHECK(message_of([&] { full.backward(1, mlp_only, x); }) ==
        "layer 1: the trace has 0 kv heads and 64 neurons, expected 2 and 64");
  CHECK((sub.site_input(1, Site::kAttnInput, sub.trace(1, x)).sizes().vec() == Shape{2, 9, 0}));
}

TEST_CASE("decoder: a cache holds nothing of layers without attention, and generation goes on") {
  for (const char* family : {"llama", "qwen2"}) {
    CAPTURE(family);
    const ModelSpec spec = make_tiny_spec(family, {.n_layers = 4});
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const Widths widths = shallow_plan(spec).levels[0].widths;
    const nn::Decoder full(checkpoint, {}), sub(sliced_checkpoint(checkpoint, widths), {});
    const at::Tensor ids = random_ids(2, 20, spec.n_vocab);
    nn::ForwardOptions options;
    options.widths = &widths;
    const at::Tensor whole = full.hidden(ids, options);
    for (const nn::Decoder* decoder : {&full, &sub}) {
      nn::KvCache cache;
      std::vector<at::Tensor> parts;
      int64_t first = 0;
      for (const int64_t n : {6, 1, 1, 11, 1}) {
        parts.push_back(decoder->hidden(ids.narrow(1, first, n), options, &cache));
        first += n;
      }
      CHECK(cache.length == 20);
      CHECK(cache.keys[0].size(1) == 1);
      for (size_t l = 1; l < cache.keys.size(); ++l) CHECK_FALSE(cache.keys[l].defined());
      CHECK(relative_difference(at::cat(parts, 1), whole) < 1e-5);
    }
    CHECK(nn::sample_sequences(sub, 2, 12, 1, 3).size() == 2);
  }
}

TEST_CASE("decoder: layer by layer equals the whole, and leaves its input as it was") {
  const nn::Decoder decoder(tiny_checkpoint(make_tiny_spec("llama", {.n_layers = 3})), {});
  const at::Tensor ids = random_ids(2, 12, 96);
  at::Tensor x = decoder.embed(ids);
  for (int64_t l = 0; l < 3; ++l) {
    const at::Tensor before = x.clone(), after = decoder.layer(l, x);
    CHECK(at::equal(x, before));
    x = after;
  }
  CHECK(at::equal(decoder.final_norm(x), decoder.hidden(ids)));
}

TEST_CASE("decoder: a token outside the window has no influence") {
  TinyOptions options;
  options.n_layers = 1;
  options.sliding_window = 4;
  const nn::Decoder decoder(tiny_checkpoint(make_tiny_spec("mistral", options)), {});
  const at::Tensor ids = random_ids(1, 10, 96);
  at::Tensor changed = ids.clone();
  changed[0][2] = (ids[0][2].item<int64_t>() + 1) % 96;
  const auto difference = (decoder.hidden(ids) - decoder.hidden(changed)).abs().amax(2)[0];
  CHECK(difference[1].item<float>() == 0);
  CHECK(difference[2].item<float>() > 0);
  CHECK(difference[5].item<float>() > 0);
  CHECK(difference.narrow(0, 6, 4).max().item<float>() == 0);
}

TEST_CASE("decoder: float32 weights are used where the file is mapped") {
  const Checkpoint checkpoint = tiny_checkpoint(make_tiny_spec("llama"));
  const at::Tensor weight = nn::as_tensor(checkpoint.load(0));
  CHECK(weight.data_ptr() == static_cast<const void*>(checkpoint.load(0).bytes.data()));
}

TEST_CASE("decoder: computes in bfloat16; in float16 where LibTorch can, and says so where it cannot") {
  const Checkpoint checkpoint = tiny_checkpoint(make_tiny_spec("llama"));
  const at::Tensor ids = random_ids(2, 12, 96);
  const at::Tensor exact = nn::Decoder(checkpoint, {}).hidden(ids);
  const nn::Decoder bf16(checkpoint, {"cpu", "bf16"});
  CHECK(relative_difference(bf16.hidden(ids), exact) < 0.2);
  CHECK((bf16.sequence_nll(ids).scalar_type() == at::kDouble));
  const std::string message = message_of([&] {
    const nn::Decoder f16(checkpoint, {"cpu", "f16"});
    CHECK(relative_difference(f16.hidden(ids), exact) < 0.02);
  });
  const bool works_or_refused =
      message == "no error" || message.find("cannot compute in f16") != std::string::npos;
  CHECK_MESSAGE(works_or_refused, message);
}

TEST_CASE("decoder: what cannot run is refused in words") {
  const Checkpoint checkpoint = tiny_checkpoint(make_tiny_spec("llama"));
  const nn::Decoder decoder(checkpoint, {});
  CHECK(message_of([&] {
          decoder.hidden(at::full({1, 3}, 96, at::kLong));
        }) == "token id 96 is out of range: the model has 96 tokens");
  CHECK(message_of([&] {
          decoder.hidden(at::full({1, 3}, -1, at::kLong));
        }) == "token id -1 is out of range: the model has 96 tokens");
  CHECK(message_of([&] {
          decoder.hidden(at::zeros({1, 65}, at::kLong));
        }) == "a sequence of 65 tokens is longer than the model's 64");
  CHECK(message_of([&] { decoder.hidden(at::zeros({3}, at::kLong)); }) ==
        "token ids: expected int64 [batch, tokens], got Long [3]");
  CHECK(message_of([&] {
          decoder.layer(2, at::zeros({1, 3, 32}));
        }) == "layer 2 is out of range: the model has 2");
  CHECK(message_of([&] { nn::Decoder(checkpoint, {"cpu", "f64"}); }) == "dtype: unknown compute type 'f64'");
  CHECK(message_of([&] { decoder.logits(at::zeros({1, 31})); }).find("LibTorch: ") == 0);
}

TEST_CASE("decoder: repairs that are not the level's are refused by name") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor ids = random_ids(1, 3, spec.n_vocab);
  nn::LevelRepair repairs;
  nn::ForwardOptions options;
  options.repairs = &repairs;
  const auto message = [&] { return message_of([&] { decoder.hidden(ids, options); }); };
  CHECK(message() == "repairs: expected 2, one per layer, got 0");
  repairs.layers.resize(2);
  CHECK(message() == "no error");
  const auto refuses = [&](Role role, std::vector<at::Tensor> parts, const std::string& expected) {
    repairs.layers[1] = {{role, {parts[0], parts[1], parts[2], parts[3]}}};
    CHECK(message() == expected);
  };
  const at::Tensor none;
  const auto ones = [](std::vector<int64_t> shape) { return at::ones(shape); };
  refuses(Role::kQueryBias, {none, none, none, ones({32})},
          "repairs of layer 1: its q bias cannot be repaired");
  refuses(Role::kQuery, {ones({16, 32}), none, none, none},
          "repair of q: weight: expected shape [32, 32], got [16, 32]");
  refuses(Role::kGate, {none, ones({2, 32}), none, none}, "repair of gate: incomplete adapter: b is missing");
  refuses(Role::kDown, {none, ones({2, 64}), ones({32, 3}), none},
          "repair of down: b: expected shape [32, 2], got [32, 3]");
  refuses(Role::kUp, {none, none, none, ones({32})}, "repair of up: bias: expected shape [64], got [32]");
  refuses(Role::kFfnNorm, {ones({31}), none, none, none},
          "repair of norm before mlp: weight: expected shape [32], got [31]");
  refuses(Role::kFfnNorm, {none, none, none, ones({32})},
          "repair of norm before mlp: a norm has no adapter and no bias");
  refuses(Role::kQueryNorm, {ones({8}), none, none, none}, "repair of q norm: the model has no such norm");
}
