#include "plan/make_plan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/levels.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using plan::make_plan;
using plan::Method;
using plan::PlanOptions;

/// SmolLM2-135M's shape by default.
ModelSpec make_spec(int64_t n_layers = 30, int64_t n_kv_heads = 3, int64_t heads_per_group = 3,
                    int64_t d_ff = 1536) {
  return test::make_tiny_spec("llama", {.n_layers = n_layers,
                                        .d_model = 576,
                                        .head_dim = 64,
                                        .n_kv_heads = n_kv_heads,
                                        .heads_per_group = heads_per_group,
                                        .d_ff = d_ff,
                                        .tied = true});
}

/// Removal losses in which layer 0 matters most, then the last one, then 1, 2, ...
Profile make_profile(const ModelSpec& spec) {
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    profile.removal_loss.push_back(layer == 0                   ? 9
                                   : layer + 1 == spec.n_layers ? 8
                                                                : 1.0 / static_cast<double>(layer));
  return profile;
}

int64_t groups(const ModelSpec& spec, const Level& level, int64_t layer) {
  return level.widths[spec.attention_space(layer)];
}
int64_t neurons(const ModelSpec& spec, const Level& level, int64_t layer) {
  return level.widths[spec.mlp_space(layer)];
}

bool is_full(const ModelSpec& spec, const Level& level, int64_t layer) {
  return groups(spec, level, layer) == spec.layer_kv_heads[static_cast<size_t>(layer)] &&
         neurons(spec, level, layer) == spec.layer_d_ff[static_cast<size_t>(layer)];
}

int64_t n_full(const ModelSpec& spec, const Level& level) {
  int64_t n = 0;
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) n += is_full(spec, level, layer);
  return n;
}

/// Half a grid step of the MLP width in every layer that is not full, as a share of the decoder weights.
double half_step(const ModelSpec& spec, const Level& level, int64_t grid) {
  int64_t params = 0;
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    if (!is_full(spec, level, layer)) params += grid * params_per_unit(spec, spec.mlp_space(layer));
  return 0.5 * static_cast<double>(params) / static_cast<double>(n_decoder_params(spec, full_widths(spec)));
}

void check_uniform(const ModelSpec& spec, const ElasticPlan& plan) {
  for (const Level& level : plan.levels)
    for (int64_t layer = 1; layer < spec.n_layers; ++layer) {
      CHECK(groups(spec, level, layer) == groups(spec, level, 0));
      CHECK(neurons(spec, level, layer) == neurons(spec, level, 0));
    }
}

/// check() tests the rules of every plan: nested, on the grid, ratios as stated, the full model last.
void check_met(const ModelSpec& spec, const ElasticPlan& plan) {
  CHECK_NOTHROW(check(plan, spec));
  for (const Level& level : plan.levels) {
    CAPTURE(level.nominal);
    CHECK(std::abs(level.decoder_ratio - level.nominal) <= half_step(spec, level, plan.grid) + 1e-6);
  }
}

}  // namespace

TEST_CASE("plan: uniform levels meet the true ratio within half a grid step, nested, all layers equal") {
  for (const int64_t n_kv_heads : {1, 2, 3, 4, 8, 9}) {
    for (const int64_t d_ff : {1536, 1500, 4864}) {
      for (const int64_t grid : {1, 32, 64}) {
        CAPTURE(n_kv_heads);
        CAPTURE(d_ff);
        CAPTURE(grid);
        const ModelSpec spec = make_spec(4, n_kv_heads, n_kv_heads == 9 ? 1 : 3, d_ff);
        PlanOptions options;
        options.grid = grid;
        // A single KV group cannot be narrowed. At the lowest levels it would weigh more than the MLP.
        if (n_kv_heads == 1) options.levels = {0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};
        const ElasticPlan plan = make_plan(spec, nullptr, options);
        CHECK(plan.method == "uniform");
        CHECK(plan.anchors.empty());
        check_uniform(spec, plan);
        check_met(spec, plan);
      }
    }
  }
}

TEST_CASE("plan: KV groups follow the ratio and the MLP makes up the difference") {
  const ModelSpec spec = make_spec();
  const ElasticPlan plan = make_plan(spec, nullptr, {});
  std::vector<int64_t> kv_groups;
  for (const Level& level : plan.levels) kv_groups.push_back(groups(spec, level, 0));
  CHECK(kv_groups == std::vector<int64_t>{1, 1, 1, 1, 2, 2, 2, 3, 3});
  CHECK(plan.notes.empty());
}

TEST_CASE("plan: levels too close together to drop a KV group keep their groups and meet their ratio") {
  const ModelSpec spec = make_spec();
  PlanOptions options;
  options.levels = parse_levels("0.3:1:0.05");
  const ElasticPlan plan = make_plan(spec, nullptr, options);
  CHECK(plan.levels.size() == 15);
  check_uniform(spec, plan);
  check_met(spec, plan);
}

TEST_CASE("plan: if nesting costs accuracy, as little as possible is lost, and a note says so") {
  const ModelSpec spec = make_spec();
  PlanOptions options;
  options.levels = parse_levels("0.2:1:0.05");  // three groups do not fit at 0.2
  const ElasticPlan plan = make_plan(spec, nullptr, options);
  CHECK_NOTHROW(check(plan, spec));
  int64_t n_off = 0;
  for (const Level& level : plan.levels) n_off += std::abs(level.decoder_ratio - level.nominal) > 0.01;
  CHECK(n_off == 1);
  REQUIRE(plan.notes.size() == 1);
  CHECK(plan.notes[0].find(
            "of the decoder weights, the nearest that whole KV groups and MLP widths in steps of 32 reach") !=
        std::string::npos);
}

TEST_CASE("plan: levels come sorted, once each, with the full model last") {
  const ModelSpec spec = make_spec();
  PlanOptions options;
  options.levels = {0.7, 0.5, 0.7, 0.30000000000000004, 0.3};
  const ElasticPlan plan = make_plan(spec, nullptr, options);
  std::vector<double> nominal;
  for (const Level& level : plan.levels) nominal.push_back(level.nominal);
  CHECK(nominal == std::vector<double>{0.3, 0.5, 0.7, 1});
  CHECK(plan.levels.back().widths == full_widths(spec));
  CHECK(plan.levels.back().decoder_ratio == 1);

  options.levels = {};
  CHECK(make_plan(spec, nullptr, options).levels.size() == 1);
}

TEST_CASE("plan: a full MLP width off the grid stays full, lower levels are on the grid") {
  const ModelSpec spec = make_spec(6, 2, 2, 172);
  PlanOptions options;
  options.levels = {0.6, 0.8};
  const ElasticPlan plan = make_plan(spec, nullptr, options);
  CHECK_NOTHROW(check(plan, spec));
  CHECK(neurons(spec, plan.levels[2], 0) == 172);
  CHECK(neurons(spec, plan.levels[0], 0) % 32 == 0);
}

TEST_CASE("plan: an MLP narrower than the grid stays whole") {
  const ModelSpec spec = make_spec(2, 4, 2, 24);
  PlanOptions options;
  options.levels = {0.5};
  const ElasticPlan plan = make_plan(spec, nullptr, options);
  CHECK(neurons(spec, plan.levels[0], 0) == 24);
  CHECK(groups(spec, plan.levels[0], 0) == 2);
}

TEST_CASE("plan: if no MLP can be narrowed, KV groups come as near to the level as they can") {
  const ModelSpec spec = make_spec(5, 4, 2, 172);
  PlanOptions options;
  options.grid = 256;
  const auto with_groups = [&](int64_t n) {
    Widths widths = full_widths(spec);
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) widths[spec.attention_space(layer)] = n;
    return static_cast<double>(n_decoder_params(spec, widths)) /
           static_cast<double>(n_decoder_params(spec, full_widths(spec)));
  };
  for (const int64_t n : {1, 2, 3}) {
    CAPTURE(n);
    options.levels = {with_groups(n)};
    CHECK(groups(spec, make_plan(spec, nullptr, options).levels[0], 0) == n);
  }
  options.levels = {0.9 * with_groups(1)};
  CHECK_THROWS_AS(make_plan(spec, nullptr, options), Error);
}

TEST_CASE("plan: a single layer with one KV group narrows its MLP") {
  const ModelSpec spec = make_spec(1, 1, 3, 1536);
  PlanOptions options;
  options.levels = {0.5};
  const ElasticPlan uniform = make_plan(spec, nullptr, options);
  check_met(spec, uniform);
  CHECK(groups(spec, uniform.levels[0], 0) == 1);

  options.method = Method::kAnchors;
  const Profile profile = make_profile(spec);
  const ElasticPlan anchors = make_plan(spec, &profile, options);
  CHECK(anchors.anchors.empty());  // the only layer has to carry the budget
  CHECK(anchors.levels[0].widths == uniform.levels[0].widths);
}

TEST_CASE("plan: a level out of reach is refused with the lowest ratio that can be met") {
  const ModelSpec spec = make_spec();
  PlanOptions options;
  options.levels = {0.02, 0.5};
  const auto plan_it = [&] { make_plan(spec, nullptr, options); };
  CHECK(test::message_of(plan_it) ==
        "level 0.02: the narrowest widths (one KV group, 32 MLP neurons) keep 0.0993 of the decoder weights");
  CHECK(test::hint_of(plan_it) == "the lowest ratio that can be met is 0.0993");
  options.levels = {0.0993};
  CHECK_NOTHROW(make_plan(spec, nullptr, options));

  options.levels = {0.1};
  options.grid = 256;
  CHECK(test::hint_of(plan_it).find("; a finer grid goes lower") != std::string::npos);
}

TEST_CASE("plan: anchors are the layers whose removal hurts most, full at every level") {
  const ModelSpec spec = make_spec(32, 8, 4, 1536);
  const Profile profile = make_profile(spec);
  PlanOptions options;
  options.method = Method::kAnchors;
  options.levels = {0.5, 0.7, 0.9};
  const ElasticPlan plan = make_plan(spec, &profile, options);
  CHECK(plan.method == "anchors");
  CHECK(plan.anchors == std::vector<int64_t>{0, 31, 1, 2, 3, 4});
  check_met(spec, plan);
  for (const Level& level : plan.levels) {
    for (const int64_t layer : plan.anchors) CHECK(is_full(spec, level, layer));
    for (int64_t layer = 6; layer < 31; ++layer) {
      CHECK(groups(spec, level, layer) == groups(spec, level, 5));
      CHECK(neurons(spec, level, layer) == neurons(spec, level, 5));
    }
  }
  // 6 of 32 layers locked: the paper keeps (0.5 * 32 - 6) / 26 = 38% of the units of the others.
  CHECK(groups(spec, plan.levels[0], 10) == 3);
  CHECK(plan.notes.empty());
}

TEST_CASE("plan: a level too low for its anchors gives them up, least important first, and stays nested") {
  const ModelSpec spec = make_spec();
  const Profile profile = make_profile(spec);
  PlanOptions options;
  options.method = Method::kAnchors;
  const ElasticPlan plan = make_plan(spec, &profile, options);
  check_met(spec, plan);
  CHECK(plan.anchors == std::vector<int64_t>{0, 29, 1, 2, 3, 4});
  CHECK(n_full(spec, plan.levels[0]) == 3);
  for (const int64_t layer : {0, 29, 1}) CHECK(is_full(spec, plan.levels[0], layer));
  CHECK(n_full(spec, plan.levels[1]) == 6);
  REQUIRE(plan.notes.size() == 1);
  CHECK(plan.notes[0] == "level 0.2: too low for 6 anchors; layers given up: 2, 3, 4");
}

TEST_CASE(
    "plan: if all layers are asked to be anchors, one carries the budget, and others give up as needed") {
  const ModelSpec spec = make_spec(4, 4, 2);
  const Profile profile = make_profile(spec);
  PlanOptions options;
  options.method = Method::kAnchors;
  options.anchor_share = 1;
  options.levels = {0.35, 0.6, 0.9};
  const ElasticPlan plan = make_plan(spec, &profile, options);
  CHECK(plan.anchors == std::vector<int64_t>{0, 3, 1});
  check_met(spec, plan);
  CHECK(n_full(spec, plan.levels[2]) == 3);
  CHECK(is_full(spec, plan.levels[0], 0));
}

TEST_CASE("plan: an anchor share of 0 gives the uniform plan") {
  const ModelSpec spec = make_spec();
  const Profile profile = make_profile(spec);
  PlanOptions options;
  const ElasticPlan uniform = make_plan(spec, nullptr, options);
  options.method = Method::kAnchors;
  options.anchor_share = 0;
  const ElasticPlan anchors = make_plan(spec, &profile, options);
  REQUIRE(anchors.levels.size() == uniform.levels.size());
  for (size_t i = 0; i < uniform.levels.size(); ++i)
    CHECK(anchors.levels[i].widths == uniform.levels[i].widths);
}

TEST_CASE("plan: a model with widths by layer is narrowed to a common width, but no layer is widened") {
  ModelSpec spec = make_spec(4, 4, 2);
  spec.layer_kv_heads = {4, 2, 3, 4};
  spec.layer_d_ff = {1536, 512, 1000, 768};
  complete_spec(spec);
  const ElasticPlan plan = make_plan(spec, nullptr, {});
  CHECK_NOTHROW(check(plan, spec));
  for (const Level& level : plan.levels) {
    CAPTURE(level.nominal);
    CHECK(std::abs(level.decoder_ratio - level.nominal) <= half_step(spec, level, plan.grid) + 1e-6);
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
      const auto index = static_cast<size_t>(layer);
      CHECK(groups(spec, level, layer) == std::min(spec.layer_kv_heads[index], groups(spec, level, 0)));
      CHECK(neurons(spec, level, layer) == std::min(spec.layer_d_ff[index], neurons(spec, level, 0)));
    }
  }
}

TEST_CASE("plan: levels that coincide in a small model get a note") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  PlanOptions options;
  options.levels = {0.9, 0.95};
  const ElasticPlan plan = make_plan(spec, nullptr, options);
  CHECK_NOTHROW(check(plan, spec));
  CHECK(std::find(plan.notes.begin(), plan.notes.end(), "level 0.95: as wide as level 1") !=
        plan.notes.end());
}

TEST_CASE("plan: every family has a plan") {
  for (const auto& [name, spec] : test::tiny_variants()) {
    CAPTURE(name);
    const Profile profile = make_profile(spec);
    PlanOptions options;
    options.grid = 8;
    options.levels = {0.6, 0.8};
    CHECK_NOTHROW(check(make_plan(spec, nullptr, options), spec));
    options.method = Method::kAnchors;
    CHECK_NOTHROW(check(make_plan(spec, &profile, options), spec));
  }
}

TEST_CASE("plan: options out of range and unusable profiles are refused") {
  const ModelSpec spec = make_spec();
  const auto message = [&](const Profile* profile, const PlanOptions& options) {
    return test::message_of([&] { make_plan(spec, profile, options); });
  };
  for (const double level : {0.0, -0.5, 1.5, 50.0, std::nan("")}) {
    PlanOptions options;
    options.levels = {level};
    CHECK(message(nullptr, options).find("is not a share of the model; expected more than 0, up to 1") !=
          std::string::npos);
    CHECK_THROWS_AS(make_plan(spec, nullptr, options), UsageError);
  }
  PlanOptions options;
  options.grid = 0;
  CHECK(message(nullptr, options) == "grid: expected 1 or more, got 0");
  options = {};
  options.anchor_share = 1.5;
  CHECK(message(nullptr, options) == "anchor_share: expected 0 to 1, got 1.5");

  options = {};
  options.method = Method::kAnchors;
  Profile profile = make_profile(spec);
  CHECK(message(nullptr, options) ==
        "the plan `anchors` needs a profile with the loss at the removal of every layer");
  profile.removal_loss.pop_back();
  CHECK(message(&profile, options) == "removal_loss: expected 30 layers, got 29");
  profile.removal_loss.push_back(std::nan(""));
  CHECK(message(&profile, options) == "removal_loss: not a number");
  profile.removal_loss.clear();
  CHECK(message(&profile, options) ==
        "the plan `anchors` needs a profile with the loss at the removal of every layer");
  profile = make_profile(spec);
  profile.spec_hash = "other";
  CHECK(message(&profile, options) == "the profile was measured on another model");
}

TEST_CASE("plan: levels are read from lists and ranges") {
  CHECK(parse_levels("0.9,0.7,0.5") == std::vector<double>{0.5, 0.7, 0.9, 1});
  CHECK(parse_levels("0.2:1.0:0.1") == std::vector<double>{0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1});
  CHECK(parse_levels("0.25:0.5:0.125, 0.9") == std::vector<double>{0.25, 0.375, 0.5, 0.9, 1});
  CHECK(parse_levels("1") == std::vector<double>{1});
  for (const char* text : {"", "0.5,", "half", "0.2:1.0", "0.2:1:0", "0.5:0.2:0.1", "0:1:0.1", "0.5 0.6",
                           "0.001:1:0.001", "nan", "2"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_levels(text), UsageError);
  }
  CHECK(test::hint_of([] { parse_levels("50"); }) == "50 percent is 0.5");
}

TEST_CASE("plan: methods have names") {
  CHECK(plan::method_named("uniform") == Method::kUniform);
  CHECK(plan::method_named("anchors") == Method::kAnchors);
  for (const char* name : {"uniform", "anchors", "zscore", "shortgpt", "dp", "dp+kl"})
    CHECK(plan::name_of(plan::method_named(name)) == name);
  CHECK(test::message_of([] { plan::method_named("best"); }) ==
        "unknown plan 'best'; known are uniform, anchors, zscore, shortgpt, dp, dp+kl");
}

}  // namespace elastify
