#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "model/levels.h"
#include "plan/make_plan.h"
#include "plan/methods.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using plan::CostCurves;
using plan::Method;
using plan::PlanOptions;
using plan::Problem;

ModelSpec make_spec(int64_t n_layers, int64_t n_kv_heads, int64_t d_ff, int64_t d_model = 16) {
  return test::make_tiny_spec(
      "llama", {.n_layers = n_layers, .d_model = d_model, .n_kv_heads = n_kv_heads, .d_ff = d_ff});
}

/// Costs that fall with the width in uneven steps, some of which are 0.
CostCurves random_curves(const ModelSpec& spec, std::mt19937& random) {
  std::uniform_real_distribution<double> step(0, 1);
  CostCurves curves{.cost = {}, .source = "noise"};
  for (const AxisSpace& space : spec.spaces) {
    auto& cost = curves.cost.emplace_back(static_cast<size_t>(space.n_units) + 1, 0.0);
    const double scale = std::pow(10, 2 * step(random));
    for (size_t k = cost.size() - 1; k-- > 0;)
      cost[k] = cost[k + 1] + (step(random) < 0.2 ? 0 : scale * step(random));
  }
  return curves;
}

double cost_of(const CostCurves& curves, const Widths& widths) {
  double sum = 0;
  for (size_t space = 0; space < widths.size(); ++space)
    sum += curves.cost[space][static_cast<size_t>(widths[space])];
  return sum;
}

/// Whether stock llama.cpp runs these widths correctly.
bool runs(const ModelSpec& spec, const Widths& widths, bool depth) {
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
    const int64_t attention = widths[spec.attention_space(layer)], mlp = widths[spec.mlp_space(layer)];
    if (!depth && (attention == 0 || mlp == 0)) return false;
    if (attention == 0 && layer == 0) return false;
    if (mlp == 0 && (attention > 0 || layer + 1 == spec.n_layers)) return false;
  }
  return true;
}

/// The least cost over all widths within those of the level above, by trying all.
double best_by_trying_all(const Problem& problem, const CostCurves& curves, const Widths& above,
                          int64_t capacity) {
  double best = INFINITY;
  Widths widths(above.size(), 0);
  std::vector<std::vector<int64_t>> choices = problem.ladders;
  for (auto& ladder : choices) ladder.insert(ladder.begin(), 0);
  std::vector<size_t> at(above.size(), 0);
  for (;;) {
    bool within = true;
    for (size_t i = 0; i < at.size(); ++i) {
      widths[i] = choices[i][at[i]];
      within = within && widths[i] <= above[i];
    }
    if (within && runs(problem.spec, widths, problem.depth) && problem.scale.of(widths) <= capacity)
      best = std::min(best, cost_of(curves, widths));
    size_t axis = at.size();
    while (axis > 0 && ++at[axis - 1] == choices[axis - 1].size()) at[--axis] = 0;
    if (axis == 0) return best;
  }
}

/// A lower bound of the cost of all widths within the capacity: the best bound that a price per weight gives.
double least_by_duality(const Problem& problem, const CostCurves& curves, int64_t capacity) {
  double best = 0;
  for (double price = 1e-6; price < 1e3; price *= 1.01) {
    double bound = -price * static_cast<double>(capacity - problem.scale.fixed());
    for (size_t space = 0; space < problem.ladders.size(); ++space) {
      double least = std::numeric_limits<double>::infinity();
      for (const int64_t width : problem.ladders[space])
        least = std::min(least, curves.cost[space][static_cast<size_t>(width)] +
                                    price * static_cast<double>(problem.scale.of(space, width)));
      bound += least;
    }
    best = std::max(best, bound);
  }
  return best;
}

}  // namespace

TEST_CASE("dp: the cost is that of the best of all widths, level by level, with and without dropped layers") {
  std::mt19937 random(7);
  const std::vector<ModelSpec> specs{make_spec(2, 2, 32), make_spec(2, 4, 24), make_spec(3, 2, 24),
                                     make_spec(3, 1, 20), make_spec(1, 3, 40)};
  int64_t n_dropped = 0;
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    const ModelSpec& spec = specs[static_cast<size_t>(i) % specs.size()];
    const CostCurves curves = random_curves(spec, random);
    PlanOptions options;
    options.method = Method::kDp;
    options.grid = 8;
    options.levels = {0.7, 0.8, 0.9};
    options.depth = i % 2 == 1;
    const Problem problem(spec, options);
    const std::vector<Widths> found = plan::solve_dynamic(problem, curves);
    REQUIRE(found.size() == 3);
    Widths above = full_widths(spec);
    for (size_t level = 3; level-- > 0;) {
      const int64_t capacity = problem.targets[level] + problem.half_step();
      CHECK(runs(spec, found[level], options.depth));
      CHECK(problem.scale.of(found[level]) <= capacity);
      for (size_t space = 0; space < above.size(); ++space) CHECK(found[level][space] <= above[space]);
      CHECK(cost_of(curves, found[level]) ==
            doctest::Approx(best_by_trying_all(problem, curves, above, capacity)).epsilon(1e-12));
      n_dropped += std::count(found[level].begin(), found[level].end(), 0);
      above = found[level];
    }
  }
  CHECK(n_dropped > 20);
}

TEST_CASE("dp: levels are nested and meet the budget within half a step of one layer's MLP") {
  std::mt19937 random(11);
  for (const int64_t n_kv_heads : {1, 2, 3}) {
    for (int i = 0; i < 5; ++i) {
      const ModelSpec spec = make_spec(6, n_kv_heads, 256, 64);
      CAPTURE(n_kv_heads);
      PlanOptions options;
      options.method = Method::kDp;
      options.grid = i % 2 == 0 ? 8 : 32;
      options.levels = parse_levels("0.3:1:0.05");
      CostCurves curves = random_curves(spec, random);
      const ElasticPlan plan = plan::make_plan(spec, nullptr, options, &curves);
      CHECK_NOTHROW(check(plan, spec));
      CHECK(plan.method == "dp");
      CHECK(plan.curves == "noise");
      const double step = static_cast<double>(options.grid * params_per_unit(spec, spec.mlp_space(0))) /
                          static_cast<double>(n_decoder_params(spec, full_widths(spec)));
      // If every MLP is as wide as the next level's, only a KV group could make up the rest.
      const double group = step * static_cast<double>(params_per_unit(spec, spec.attention_space(0))) /
                           static_cast<double>(options.grid * params_per_unit(spec, spec.mlp_space(0)));
      for (size_t i_level = 0; i_level + 1 < plan.levels.size(); ++i_level) {
        const Level &level = plan.levels[i_level], &above = plan.levels[i_level + 1];
        CAPTURE(level.nominal);
        bool open = false;
        for (int64_t layer = 0; layer < spec.n_layers; ++layer)
          open = open || level.widths[spec.mlp_space(layer)] < above.widths[spec.mlp_space(layer)];
        CHECK(std::abs(level.decoder_ratio - level.nominal) <= (open ? 0.5 * step : group) + 1e-6);
      }
    }
  }
}

TEST_CASE("dp: many widths and weights without a common divisor are solved nearly as well") {
  std::mt19937 random(5);
  const ModelSpec spec = make_spec(4, 2, 1500, 31);
  const CostCurves curves = random_curves(spec, random);
  PlanOptions options;
  options.method = Method::kDp;
  options.grid = 1;
  options.levels = {0.5};
  const Problem problem(spec, options);
  const Widths widths = plan::solve_dynamic(problem, curves)[0];
  const int64_t left = problem.targets[0] + problem.half_step() - problem.scale.of(widths);
  CHECK(left >= 0);
  CHECK(left <= 2 * problem.half_step());
  const double bound = least_by_duality(problem, curves, problem.targets[0] + problem.half_step());
  CHECK(bound > 0);
  CHECK(cost_of(curves, widths) >= bound);
  CHECK(cost_of(curves, widths) <= 1.02 * bound);
}

TEST_CASE("dp: min_width keeps a share of every space") {
  std::mt19937 random(3);
  const ModelSpec spec = make_spec(4, 4, 256, 64);
  const CostCurves curves = random_curves(spec, random);
  PlanOptions options;
  options.method = Method::kDp;
  options.min_width = 0.3;
  options.levels = {0.6};
  for (const bool depth : {false, true}) {
    options.depth = depth;
    const Widths widths = plan::solve_dynamic(Problem(spec, options), curves)[0];
    for (size_t space = 0; space < widths.size(); ++space)
      CHECK((widths[space] >= (spec.spaces[space].kind == SpaceKind::kMlp ? 96 : 2) ||
             (depth && widths[space] == 0)));
  }
  options.depth = false;
  options.levels = {0.2};
  const auto plan_it = [&] { plan::solve_dynamic(Problem(spec, options), curves); };
  CHECK(test::message_of(plan_it).find("the narrowest widths (2 KV groups, 96 MLP neurons) keep 0.") !=
        std::string::npos);
  CHECK(test::hint_of(plan_it).find("a smaller min_width goes lower") != std::string::npos);
}

TEST_CASE("dp: without curves it uses the profile's scores, and says what the profile lacks") {
  const ModelSpec spec = make_spec(3, 2, 64);
  PlanOptions options;
  options.method = Method::kDp;
  options.grid = 8;
  options.levels = {0.6};
  const auto message = [&](const Profile* profile) {
    return test::message_of([&] { plan::make_plan(spec, profile, options); });
  };
  CHECK(message(nullptr) == "the plan `dp` needs a profile with taylor importance");
  Profile profile;
  CHECK(message(&profile) == "the profile was measured on another model");
  profile.spec_hash = spec_hash(spec);
  CHECK(message(&profile) == "the profile has no taylor importance, only: none");
  // The scores of the middle layer are 0.
  for (const AxisSpace& space : spec.spaces)
    profile.importance[Metric::kTaylor].emplace_back(static_cast<size_t>(space.n_units),
                                                     space.layer == 1 ? 0.0F : 1.0F);
  const ElasticPlan plan = plan::make_plan(spec, &profile, options);
  CHECK(plan.curves == "sums of the taylor scores of the units left out");
  CHECK(plan.levels[0].widths[spec.attention_space(1)] == 1);
  CHECK(plan.levels[0].widths[spec.mlp_space(1)] == 8);
  profile.importance[Metric::kTaylor][2][1] = NAN;
  CHECK(message(&profile) == "layers.1.attn: taylor importance of unit 1 is nan");
  options.metric = Metric::kObs;
  CHECK(message(&profile) == "obs orders units but gives them no scores");
}

TEST_CASE("cost curves: sums of the scores that are left out; made non-increasing; checked") {
  const ModelSpec spec = make_spec(1, 2, 4);
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  profile.importance[Metric::kWanda] = {{1, 3}, {2, -1, 5, 4}};
  CostCurves curves = plan::curves_from_scores(spec, profile, Metric::kWanda);
  CHECK(curves.cost[0] == std::vector<double>{4, 1, 0});
  CHECK(curves.cost[1] == std::vector<double>{11, 6, 2, 0, 0});
  curves.cost[1] = {9, 3, 5, -1, 0};
  CHECK(plan::non_increasing(spec, curves).cost[1] == std::vector<double>{9, 5, 5, 0, 0});
  curves.cost[1][2] = INFINITY;
  CHECK(test::message_of([&] { plan::non_increasing(spec, curves); }) ==
        "cost curves: layers.0.mlp: keeping 2 units costs inf");
  curves.cost[1].pop_back();
  CHECK(test::message_of([&] { plan::non_increasing(spec, curves); }) ==
        "cost curves: layers.0.mlp: expected costs of 0 to 4 units, got 4 costs");
  curves.cost.pop_back();
  CHECK(test::message_of([&] { plan::non_increasing(spec, curves); }) ==
        "cost curves: expected 2 spaces, got 1");
}

TEST_CASE("plan: only searched widths drop layers") {
  const ModelSpec spec = make_spec(2, 2, 64);
  PlanOptions options;
  options.depth = true;
  CHECK(test::message_of([&] { plan::make_plan(spec, nullptr, options); }) ==
        "depth: the plan `uniform` drops no layers");
  options = {};
  options.min_width = 2;
  CHECK(test::message_of([&] { plan::make_plan(spec, nullptr, options); }) ==
        "min_width: expected 0 to 1, got 2");
  options = {};
  options.method = Method::kDpKl;
  CHECK(test::message_of([&] { plan::make_plan(spec, nullptr, options); }) ==
        "the plan `dp+kl` measures sub-models, which this command cannot");
}

}  // namespace elastify
