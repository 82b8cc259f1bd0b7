#include "recover/closed_form.h"

#include "support/batches.h"
#include "support/decoders.h"
#include "support/errors.h"
#include "support/reference_decoder.h"

using namespace elastify;
using namespace elastify::test;

namespace {

double nll_of(const nn::Decoder& decoder, const at::Tensor& ids, const Widths& widths,
              const nn::LevelRepair* repairs) {
  const c10::NoGradGuard no_gradients;
  nn::ForwardOptions options;
  options.widths = &widths;
  options.repairs = repairs;
  return decoder.sequence_nll(ids, options).sum().item<double>();
}

recover::ClosedFormOptions with(Compensation compensation, int64_t rank = 8) {
  recover::ClosedFormOptions options;
  options.compensation = compensation;
  options.rank = rank;
  options.ridge = 1e-6;
  options.sequential = options.whole_stream = true;  // the same for all kinds
  return options;
}

constexpr Compensation kAll[] = {Compensation::kBias, Compensation::kAdapter, Compensation::kAdapterBias,
                                 Compensation::kBaked, Compensation::kBakedBias};

/// Mean squared error of the residual stream after layer 0.
double error_after_first_layer(const nn::Decoder& decoder, const at::Tensor& ids, const Widths& widths,
                               const nn::LevelRepair* repairs) {
  const c10::NoGradGuard no_gradients;
  const at::Tensor x = decoder.embed(ids);
  nn::ForwardOptions options;
  options.widths = &widths;
  options.repairs = repairs;
  return (decoder.layer(0, x, options) - decoder.layer(0, x)).square().mean().item<double>();
}

}  // namespace

TEST_CASE("closed form: baked weights of the first o are those of the normal equations, weighed or not") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor ids = random_ids(8, 32, spec.n_vocab);
  const Widths widths = half_widths(spec);
  for (const bool weigh : {false, true}) {
    CAPTURE(weigh);
    auto options = with(Compensation::kBaked);
    options.ridge = 0.01;
    options.weigh_tokens = weigh;
    const auto repairs =
        recover::fit_level(decoder, {ids.narrow(0, 0, 5), ids.narrow(0, 5, 3)}, widths, options);
    const c10::NoGradGuard no_gradients;
    const auto whole = decoder.trace(0, decoder.embed(ids));
    const int64_t kept = widths[0] * spec.layer(0).heads_per_group * spec.head_dim;
    at::Tensor x = whole.attention.narrow(2, 0, kept).reshape({-1, kept}).to(at::kDouble);
    at::Tensor y = (whole.middle - whole.input).reshape({-1, spec.d_model}).to(at::kDouble);
    if (weigh) {
      const at::Tensor size =
          whole.middle.reshape({-1, spec.d_model}).to(at::kDouble).square().mean(1, true).sqrt();
      x = x / size;
      y = y / size;
    }
    const at::Tensor now = decoder.projection(0, Site::kAttnOut, widths).t().to(at::kDouble);
    const at::Tensor moments = at::mm(x.t(), x);
    const at::Tensor ridge = 0.01 * moments.diagonal().mean() * at::eye(kept, moments.options());
    const at::Tensor expected = at::linalg_solve(moments + ridge, at::mm(x.t(), y) + at::mm(ridge, now));
    CHECK(relative_difference(repairs.layers[0].at(Role::kAttnOut).weight.t(), expected) < 1e-4);
  }
}

TEST_CASE("closed form: levels fitted together are as if fitted one by one") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const std::vector<at::Tensor> batches{random_ids(4, 24, spec.n_vocab, 1),
                                        random_ids(2, 24, spec.n_vocab, 2)};
  Widths without_attention = half_widths(spec);
  without_attention[spec.attention_space(1)] = 0;
  const std::vector<Widths> levels{without_attention, half_widths(spec), full_widths(spec)};
  for (const bool sequential : {true, false}) {
    CAPTURE(sequential);
    auto options = with(compensation_named("adapter+bias+norm"), 4);
    options.sequential = sequential;
    const auto together = recover::fit_levels(decoder, batches, levels, options);
    REQUIRE(together.size() == levels.size());
    for (size_t i = 0; i < levels.size(); ++i) {
      const auto alone = recover::fit_level(decoder, batches, levels[i], options);
      CHECK(at::equal(together[i].output_norm, alone.output_norm));
      for (size_t l = 0; l < alone.layers.size(); ++l) {
        REQUIRE(together[i].layers[l].size() == alone.layers[l].size());
        CHECK(together[i].layers[l].contains(Role::kAttnOut) == (levels[i][2 * l] > 0));
        for (const auto& [role, found] : together[i].layers[l]) {
          const nn::TensorRepair& expected = alone.layers[l].at(role);
          CHECK(found.a.defined());
          CHECK(at::equal(found.a, expected.a));
          CHECK(at::equal(found.b, expected.b));
          CHECK(at::equal(found.bias, expected.bias));
        }
      }
    }
  }
}

TEST_CASE("closed form: on little text, the ridge chosen on held-out batches errs less than none") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor fresh = random_ids(16, 32, spec.n_vocab, 99);
  const Widths widths = half_widths(spec);
  std::vector<at::Tensor> little;
  for (uint64_t i = 0; i < 5; ++i) little.push_back(random_ids(1, 14, spec.n_vocab, 10 + i));
  auto options = with(Compensation::kBaked);
  const auto greedy = recover::fit_level(decoder, little, widths, options);
  options.ridge = 0;
  const auto chosen = recover::fit_level(decoder, little, widths, options);
  CHECK(error_after_first_layer(decoder, fresh, widths, &chosen) <
        error_after_first_layer(decoder, fresh, widths, &greedy));
}

TEST_CASE(
    "closed form: an adapter of full rank is what is baked, a thinner one lies between it and nothing") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor ids = random_ids(8, 32, spec.n_vocab);
  const Widths widths = half_widths(spec);
  const auto baked = recover::fit_level(decoder, {ids}, widths, with(Compensation::kBaked));
  const auto full = recover::fit_level(decoder, {ids}, widths, with(Compensation::kAdapter, 1000));
  CHECK(nll_of(decoder, ids, widths, &full) ==
        doctest::Approx(nll_of(decoder, ids, widths, &baked)).epsilon(1e-5));
  double last = error_after_first_layer(decoder, ids, widths, nullptr);
  for (const int64_t rank : {1, 4, 16, 32}) {
    CAPTURE(rank);
    const auto thin = recover::fit_level(decoder, {ids}, widths, with(Compensation::kAdapter, rank));
    CHECK(thin.layers[0].at(Role::kDown).a.size(0) == std::min(rank, widths[1]));
    const double error = error_after_first_layer(decoder, ids, widths, &thin);
    CHECK(error < last);
    last = error;
  }
  CHECK(last == doctest::Approx(error_after_first_layer(decoder, ids, widths, &baked)).epsilon(1e-3));
}

TEST_CASE("closed form: every form brings the stream nearer to the full model's, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const nn::Decoder decoder(tiny_checkpoint(variant.spec), {});
    const at::Tensor ids = random_ids(8, 32, variant.spec.n_vocab);
    const Widths widths = half_widths(variant.spec);
    const double before = error_after_first_layer(decoder, ids, widths, nullptr);
    for (const Compensation compensation : kAll) {
      CAPTURE(name_of(compensation));
      const auto repairs = recover::fit_level(decoder, {ids}, widths, with(compensation));
      CHECK(error_after_first_layer(decoder, ids, widths, &repairs) < before);
    }
  }
}

TEST_CASE("closed form: at full width there is nothing to make up for, biases of the model included") {
  for (const char* family : {"llama", "qwen2"}) {
    const ModelSpec spec = make_tiny_spec(family, {.attention_bias = std::string(family) == "llama"});
    const nn::Decoder decoder(tiny_checkpoint(spec), {});
    const at::Tensor ids = random_ids(8, 32, spec.n_vocab);
    const Widths widths = full_widths(spec);
    const double expected = nll_of(decoder, ids, widths, nullptr);
    for (const std::string& name : compensation_names()) {
      CAPTURE(name);
      const auto repairs = recover::fit_level(decoder, {ids}, widths, with(compensation_named(name)));
      CHECK(nll_of(decoder, ids, widths, &repairs) == doctest::Approx(expected).epsilon(1e-4));
    }
  }
}

TEST_CASE("closed form: repairs run as the reference runs them") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const ReferenceDecoder reference(checkpoint);
  const at::Tensor ids = random_ids(4, 20, spec.n_vocab);
  const Widths widths = half_widths(spec);
  for (const std::string& name : compensation_names()) {
    CAPTURE(name);
    const auto repairs = recover::fit_level(decoder, {ids}, widths, with(compensation_named(name)));
    const ReferenceDecoder::Options options{.widths = &widths, .repairs = &repairs};
    CHECK(nll_of(decoder, ids, widths, &repairs) ==
          doctest::Approx(reference.sequence_nll(ids, options).sum().item<double>()).epsilon(1e-5));
  }
}

TEST_CASE(
    "closed form: o and down in front of a norm are refused, the output norm is fitted with its offset") {
  const auto fit = [](const ModelSpec& spec, const char* compensation) {
    return recover::fit_level(nn::Decoder(memory_checkpoint(spec), {}), {random_ids(8, 20, spec.n_vocab)},
                              half_widths(spec), with(compensation_named(compensation)));
  };
  const ModelSpec offset = peculiar_variants()[0].spec, post_norms = peculiar_variants()[1].spec;
  CHECK(message_of([&] { fit(post_norms, "adapter"); }) ==
        "model.layers.0.attn_post_norm.weight: closed-form repairs of o and down are not supported where a "
        "norm follows");
  CHECK(fit(post_norms, "norm").output_norm.defined());
  const nn::Decoder decoder(memory_checkpoint(offset), {});
  const at::Tensor ids = random_ids(8, 20, offset.n_vocab);
  const Widths widths = half_widths(offset);
  const auto repairs = recover::fit_level(decoder, {ids}, widths, with(Compensation::kNorm));
  CHECK(nll_of(decoder, ids, widths, &repairs) < nll_of(decoder, ids, widths, nullptr));
}

TEST_CASE("closed form: what a level leaves out has no repair, what it keeps has one") {
  const ModelSpec spec = make_tiny_spec("qwen2", {.n_layers = 4});
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const at::Tensor ids = random_ids(8, 32, spec.n_vocab);
  const Widths widths = shallow_widths(spec);
  const double before = nll_of(decoder, ids, widths, nullptr);
  for (const Compensation compensation : kAll) {
    CAPTURE(name_of(compensation));
    const auto repairs = recover::fit_level(decoder, {ids}, widths, with(compensation));
    for (size_t l = 0; l < 4; ++l) {
      CHECK(repairs.layers[l].contains(Role::kAttnOut) == (widths[2 * l] > 0));
      CHECK(repairs.layers[l].contains(Role::kDown) == (widths[2 * l + 1] > 0));
    }
    CHECK(std::isfinite(nll_of(decoder, ids, widths, &repairs)));
    CHECK(nll_of(decoder, ids, widths, &repairs) != before);
  }
}

TEST_CASE("closed form: fits without calibration data are refused") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  CHECK(message_of([&] { recover::fit_level(decoder, {}, full_widths(spec), with(Compensation::kBaked)); }) ==
        "closed-form compensation needs calibration data");
}
