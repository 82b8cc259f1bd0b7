#include "nn/attention_half.h"

#include "support/half_gradients.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("attention half: output and all gradients are the reference's, at every width, with all repairs") {
  check_half_in_every_variant(nn::Half::kAttention);
}

TEST_CASE("attention half: gradients go past blocks of queries and windows") {
  for (const int64_t window : {0, 20, 150}) {
    CAPTURE(window);
    const ModelSpec spec = make_tiny_spec("mistral", {.max_seq = 400, .sliding_window = window});
    const Widths narrow = half_widths(spec);
    nn::LevelRepair repairs = random_repairs(spec, narrow, false);
    HalfCheck(memory_checkpoint(spec), nn::Half::kAttention).run(&narrow, &repairs, 300);
  }
}

TEST_CASE("attention half: only tensors that require gradients get some") {
  const ModelSpec spec = make_tiny_spec("qwen3", {.head_dim = 16});
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  nn::LevelRepair repairs = random_repairs(spec, full_widths(spec), true);
  for (auto& [role, repair] : repairs.layers[0])
    for (at::Tensor* tensor : {&repair.weight, &repair.a, &repair.b, &repair.bias})
      if (tensor->defined() && !(role == Role::kKey && tensor == &repair.a)) *tensor = tensor->detach();
  nn::ForwardOptions options;
  options.repairs = &repairs;
  const at::Tensor x = decoder.embed(random_ids(2, 9, spec.n_vocab));
  const auto found = decoder.backward(0, decoder.trace(0, x, options), torch::randn(x.sizes()), options);
  REQUIRE(found.repairs.size() == 1);
  const nn::TensorRepair& key = found.repairs.at(Role::kKey);
  CHECK(key.a.defined());
  CHECK_FALSE(key.b.defined());
  CHECK_FALSE(key.weight.defined());
  CHECK_FALSE(key.bias.defined());
}
