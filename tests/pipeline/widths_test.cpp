#include "pipeline/widths.h"

#include "pipeline/order.h"
#include "profile/profile_model.h"
#include "support/batches.h"
#include "support/decoders.h"
#include "support/errors.h"

namespace elastify::pipeline {
namespace {

using namespace elastify::test;

/// A tiny model with second moments, and the text they come from.
struct Subject {
  ModelSpec spec;
  Checkpoint checkpoint = tiny_checkpoint(spec);
  nn::Decoder decoder{checkpoint, {}};
  at::Tensor ids = random_ids(8, 32, spec.n_vocab);
  profile::Measured measured;
  std::vector<solve::PrefixErrors> errors;

  explicit Subject(int64_t n_kv_heads = 2)
      : spec(make_tiny_spec("llama", {.n_layers = 3, .n_kv_heads = n_kv_heads})) {
    profile::ProfileOptions options;
    options.metrics = {Metric::kTaylor, Metric::kGram};
    options.removal_tokens = 0;
    measured = profile::profile_model(decoder, checkpoint, random_batches(8, 32, spec.n_vocab), options);
    errors = solve::prefix_errors(checkpoint, measured.moments, measured.profile.n_tokens,
                                  identity_permutation(spec), kMomentRidge);
  }
  double nll(const Widths& widths) const {
    const c10::NoGradGuard no_gradients;
    nn::ForwardOptions options;
    options.widths = &widths;
    return decoder.sequence_nll(ids, options).sum().item<double>() / static_cast<double>(8 * 31);
  }
};

plan::PlanOptions with(plan::Method method, std::vector<double> levels = {0.6}) {
  plan::PlanOptions options;
  options.method = method;
  options.levels = std::move(levels);
  options.grid = 8;
  options.metric = Metric::kGram;
  options.search_tokens = 256;
  return options;
}

TEST_SUITE("pipeline") {
  TEST_CASE("widths: a curve has the shape of the fitted errors, scaled by losses at half and at an eighth") {
    const Subject subject;
    const WidthMeter meter(subject.decoder, {subject.ids.narrow(0, 0, 3), subject.ids.narrow(0, 3, 5)});
    const plan::CostCurves curves = meter.curves(subject.errors);
    REQUIRE(curves.cost.size() == subject.spec.spaces.size());
    const double base = subject.nll(full_widths(subject.spec));
    for (size_t s = 0; s < curves.cost.size(); ++s) {
      CAPTURE(subject.spec.spaces[s].name);
      const auto n = static_cast<size_t>(subject.spec.spaces[s].n_units);
      const solve::PrefixErrors& errors = subject.errors[s];
      REQUIRE(curves.cost[s].size() == n + 1);
      CHECK(curves.cost[s][n] == doctest::Approx(0));
      const auto factor = [&](size_t width) {
        Widths widths = full_widths(subject.spec);
        widths[s] = static_cast<int64_t>(width);
        return std::max(subject.nll(widths) - base, 1e-4) / errors.unfitted[width];
      };
      const size_t half = n / 2, eighth = std::max<size_t>(n / 8, 1);
      const double at_half = factor(half), at_eighth = factor(eighth);
      CHECK(curves.cost[s][half] == doctest::Approx(at_half * errors.fitted[half]).epsilon(2e-3));
      CHECK(curves.cost[s][eighth] == doctest::Approx(at_eighth * errors.fitted[eighth]).epsilon(2e-3));
      const size_t between = (half + eighth) / 2;
      const double share =
          half > eighth ? static_cast<double>(between - eighth) / static_cast<double>(half - eighth) : 1;
      CHECK(curves.cost[s][between] ==
            doctest::Approx((share * at_half + (1 - share) * at_eighth) * errors.fitted[between])
                .epsilon(2e-3));
    }
  }

  TEST_CASE("widths: nothing diverges at full width, and narrower diverges more") {
    const Subject subject;
    const WidthMeter meter(subject.decoder, {subject.ids});
    Widths widths = full_widths(subject.spec);
    CHECK(meter.divergence(widths) == doctest::Approx(0).epsilon(1e-9));
    double last = 0;
    for (const int64_t d_ff : {48, 24, 8}) {
      for (int64_t l = 0; l < subject.spec.n_layers; ++l) widths[subject.spec.mlp_space(l)] = d_ff;
      const double divergence = meter.divergence(widths);
      CHECK(divergence > last);
      last = divergence;
    }
  }

  TEST_CASE("widths: a divergence has the same bits, whatever was measured before it") {
    const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 11});
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const nn::Decoder decoder(checkpoint, {});
    const std::vector<at::Tensor> batches{random_ids(3, 16, spec.n_vocab), random_ids(2, 16, spec.n_vocab)};
    const WidthMeter meter(decoder, batches);
    Widths widths = full_widths(spec);
    for (const int64_t layer : {5, 10, 0, 7, 7, 2, 9, 1, 10, 4, 6, 3, 8}) {
      CAPTURE(layer);
      const Widths before = widths;
      widths[spec.mlp_space(layer)] -= 8;
      const double divergence = meter.divergence(widths);
      CHECK(divergence == WidthMeter(decoder, batches).divergence(widths));
      if (layer % 3 == 1) widths = before;
    }
  }

  TEST_CASE("widths: a search on divergences ends no higher than uniform widths on the text it measured") {
    const Subject subject;
    const OpenModel model{subject.checkpoint, std::nullopt, std::nullopt};
    Calibration calibration;
    calibration.text.data = {"self"};
    calibration.text.seq = 16;
    const std::vector<double> levels{0.5, 0.7};
    const auto plan_by = [&](plan::Method method) {
      return plan_widths(model, {&subject.measured.profile, subject.measured.moments, &calibration},
                         identity_permutation(subject.spec), with(method, levels))
          .plan;
    };
    const ElasticPlan uniform = plan_by(plan::Method::kUniform), searched = plan_by(plan::Method::kDpKl);
    TextOptions text = calibration.text;
    text.tokens = 256;
    const WidthMeter meter(subject.decoder, calibration_batches(model, subject.decoder, text));
    double sum_uniform = 0, sum_searched = 0;
    for (size_t i = 0; i < levels.size(); ++i) {
      sum_uniform += meter.divergence(uniform.levels[i].widths);
      sum_searched += meter.divergence(searched.levels[i].widths);
      CHECK(std::abs(searched.levels[i].decoder_ratio - levels[i]) < 0.03);
    }
    CHECK(sum_searched <= sum_uniform + 1e-9);
    check(plan_by(plan::Method::kDp), subject.spec);
  }

  TEST_CASE("widths: an attention of one KV group is measured by leaving it out, but in the first layer") {
    const Subject subject(1);
    const WidthMeter meter(subject.decoder, {subject.ids});
    const plan::CostCurves curves = meter.curves(subject.errors);
    for (int64_t l = 1; l < subject.spec.n_layers; ++l) {
      CAPTURE(l);
      const size_t s = subject.spec.attention_space(l);
      Widths widths = full_widths(subject.spec);
      widths[s] = 0;
      const double rise = subject.nll(widths) - subject.nll(full_widths(subject.spec));
      REQUIRE(curves.cost[s].size() == 2);
      CHECK(curves.cost[s][0] == doctest::Approx(std::max(rise, 1e-4)).epsilon(2e-3));
      CHECK(curves.cost[s][1] == doctest::Approx(0));
    }
  }

  TEST_CASE("widths: a search measures on sequences of the length that is asked for, of as much text") {
    const Subject subject;
    const OpenModel model{subject.checkpoint, std::nullopt, std::nullopt};
    Calibration calibration;
    calibration.text.data = {"self"};
    calibration.text.seq = 16;
    calibration.text.batch = 4;
    TextOptions text = calibration.text;
    text.tokens = 64;
    text.seq = 8;
    text.batch = 8;
    const auto batches = calibration_batches(model, subject.decoder, text);
    REQUIRE(batches.size() == 1);
    CHECK(batches[0].sizes() == at::IntArrayRef{8, 8});
    plan::PlanOptions options = with(plan::Method::kDpKl);
    options.search_tokens = 64;
    const auto plan = [&] {
      return plan_widths(model, {&subject.measured.profile, subject.measured.moments, &calibration},
                         identity_permutation(subject.spec), options)
          .plan;
    };
    const auto measured_on_short = [&](const ElasticPlan& searched) {
      const double loss = WidthMeter(subject.decoder, batches).divergence(searched.levels[0].widths);
      return searched.notes.at(0).find(fmt::format("measured loss {:.4g},", loss)) != std::string::npos;
    };
    CHECK_FALSE(measured_on_short(plan()));
    options.search_seq = 8;
    CHECK(measured_on_short(plan()));
    options.search_seq = 32;  // longer than the text asked for: gives one sequence
    options.search_tokens = 16;
    CHECK_FALSE(measured_on_short(plan()));
    options.search_seq = 1;
    CHECK(message_of([&] { plan(); }) == "search_seq: expected 0, or 2 or more, got 1");
  }

  TEST_CASE("widths: what a method goes by and is not there is said with a way out") {
    const Subject subject;
    const OpenModel model{subject.checkpoint, std::nullopt, std::nullopt};
    const Permutation order = identity_permutation(subject.spec);
    const auto plan_with = [&](const MomentSource& moments, const Calibration* calibration) {
      plan_widths(model, {&subject.measured.profile, moments, calibration}, order, with(plan::Method::kDpKl));
    };
    CHECK(message_of([&] { plan_with(nullptr, nullptr); }) ==
          "plan `dp+kl` goes by second moments, and there are none");
    CHECK(message_of([&] { plan_with(subject.measured.moments, nullptr); }) ==
          "plan `dp+kl` measures losses on text, and there is none");
    CHECK(hint_of([&] { plan_with(subject.measured.moments, nullptr); }).find("--data") != std::string::npos);
  }
}

}  // namespace
}  // namespace elastify::pipeline
