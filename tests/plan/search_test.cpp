#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "plan/local_search.h"
#include "plan/make_plan.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using plan::CostCurves;
using plan::Method;
using plan::PlanOptions;
using plan::Problem;

/// Convex costs, weight * (share left out)^2 of every space.
CostCurves convex_curves(const ModelSpec& spec, const std::vector<double>& weights) {
  CostCurves curves{.cost = {}, .source = "convex"};
  for (size_t space = 0; space < spec.spaces.size(); ++space) {
    auto& cost = curves.cost.emplace_back();
    const auto n = static_cast<double>(spec.spaces[space].n_units);
    for (double k = 0; k <= n; ++k) cost.push_back(weights[space] * (1 - k / n) * (1 - k / n));
  }
  return curves;
}

double cost_of(const CostCurves& curves, const Widths& widths) {
  double sum = 0;
  for (size_t space = 0; space < widths.size(); ++space)
    sum += curves.cost[space][static_cast<size_t>(widths[space])];
  return sum;
}

std::vector<double> random_weights(const ModelSpec& spec, std::mt19937& random) {
  std::vector<double> weights;
  for (size_t i = 0; i < spec.spaces.size(); ++i)
    weights.push_back(std::exp(std::uniform_real_distribution<double>(-2, 2)(random)));
  return weights;
}

}  // namespace

TEST_CASE("zscore: one threshold for all spaces, scores standardised within each") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 2, .d_ff = 8});
  PlanOptions options;
  options.method = Method::kZscore;
  options.grid = 4;
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  profile.importance[Metric::kTaylor] = {
      {5, 3}, {8, 8, 8, 8, 8, 8, 0, 0}, {900, 100}, {10, 1, 1, 1, 1, 1, 1, 1}};
  const int64_t group = params_per_unit(spec, 0), step = 4 * params_per_unit(spec, 1);
  const int64_t all = n_decoder_params(spec, full_widths(spec));
  const auto level_without = [&](int64_t weight) {
    return static_cast<double>(all - weight) / static_cast<double>(all);
  };
  // From the full model down, these go: both attentions at z = -1 (layer 1 first, the later of two equal
  // ones), then the neurons of layer 1 (z = -0.38), then those of layer 0 (z = 0.58).
  options.levels = {level_without(2 * group + 2 * step), level_without(2 * group + step),
                    level_without(2 * group), level_without(group)};
  const ElasticPlan plan = plan::make_plan(spec, &profile, options);
  CHECK(plan.method == "zscore");
  CHECK(plan.curves == "taylor scores, standardised within each space");
  CHECK(plan.levels[3].widths == Widths{2, 8, 1, 8});
  CHECK(plan.levels[2].widths == Widths{1, 8, 1, 8});
  CHECK(plan.levels[1].widths == Widths{1, 8, 1, 4});
  CHECK(plan.levels[0].widths == Widths{1, 4, 1, 4});
  CHECK_NOTHROW(check(plan, spec));
  CHECK(test::message_of([&] { plan::make_plan(spec, nullptr, options); }) ==
        "the plan `zscore` needs a profile with taylor importance");
}

TEST_CASE("zscore: scores without spread and single units count as average") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_kv_heads = 1, .d_ff = 64});
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  for (const AxisSpace& space : spec.spaces)
    profile.importance[Metric::kTaylor].emplace_back(static_cast<size_t>(space.n_units), 2.0F);
  PlanOptions options;
  options.method = Method::kZscore;
  options.grid = 8;
  options.levels = {0.6, 0.8};
  CHECK_NOTHROW(check(plan::make_plan(spec, &profile, options), spec));
}

TEST_CASE("shortgpt: whole layers go, the least influential first, to within half a layer of the level") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 6});
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  profile.block_influence = {0.01, 0.3, 0.1, 0.4, 0.2, 0.02};  // the first and the last stay in any case
  PlanOptions options;
  options.method = Method::kShortGpt;
  options.levels = {0.1, 0.5, 0.8};
  const ElasticPlan plan = plan::make_plan(spec, &profile, options);
  const auto dropped = [&](size_t level) {
    std::vector<int64_t> layers;
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
      const Widths& widths = plan.levels[level].widths;
      CHECK((widths[spec.attention_space(layer)] == 0) == (widths[spec.mlp_space(layer)] == 0));
      if (widths[spec.mlp_space(layer)] == 0) layers.push_back(layer);
    }
    return layers;
  };
  CHECK((dropped(2) == std::vector<int64_t>{2}));
  CHECK((dropped(1) == std::vector<int64_t>{1, 2, 4}));
  CHECK((dropped(0) == std::vector<int64_t>{1, 2, 3, 4}));
  CHECK(plan.notes.at(0).find("the nearest that whole layers reach") != std::string::npos);
  CHECK_NOTHROW(check(plan, spec));
  profile.block_influence.pop_back();
  CHECK(test::message_of([&] { plan::make_plan(spec, &profile, options); }) ==
        "the plan `shortgpt` needs a profile with the influence of every layer");
  CHECK(test::message_of([&] { plan::make_plan(spec, nullptr, options); }) ==
        "the plan `shortgpt` needs a profile with the influence of every layer");
}

TEST_CASE("dp+kl: it finds the optimum of a separable loss that its curves do not describe") {
  std::mt19937 random(1);
  const ModelSpec spec =
      test::make_tiny_spec("llama", {.n_layers = 4, .d_model = 16, .n_kv_heads = 1, .d_ff = 64});
  for (int i = 0; i < 10; ++i) {
    CAPTURE(i);
    const CostCurves truth = convex_curves(spec, random_weights(spec, random));
    const CostCurves wrong = convex_curves(spec, random_weights(spec, random));
    PlanOptions options;
    options.method = Method::kDpKl;
    options.grid = 8;
    options.levels = {0.75};
    options.search_steps = 100000;
    int64_t n_measured = 0;
    std::map<Widths, int> times;
    const plan::MeasureLoss measure = [&](const Widths& widths) {
      ++n_measured;
      CHECK(++times[widths] == 1);
      return cost_of(truth, widths);
    };
    const ElasticPlan found = plan::make_plan(spec, nullptr, options, &wrong, measure);
    CHECK(found.method == "dp+kl");
    options.method = Method::kDp;
    const ElasticPlan best = plan::make_plan(spec, nullptr, options, &truth);
    // With one KV group per layer, all exchanges are between equal steps, so the only local optimum is the
    // global one.
    CHECK(cost_of(truth, found.levels[0].widths) == doctest::Approx(cost_of(truth, best.levels[0].widths)));
    CHECK(n_measured < 400);
  }
}

TEST_CASE(
    "dp+kl: never worse than its starts, nested, within the budget, on a loss with interplay and noise") {
  std::mt19937 random(2);
  const ModelSpec spec =
      test::make_tiny_spec("llama", {.n_layers = 5, .d_model = 32, .n_kv_heads = 3, .d_ff = 96});
  for (int i = 0; i < 20; ++i) {
    CAPTURE(i);
    const CostCurves curves = convex_curves(spec, random_weights(spec, random));
    const CostCurves truth = convex_curves(spec, random_weights(spec, random));
    std::map<Widths, double> noise;
    int64_t n_measured = 0;
    const plan::MeasureLoss measure = [&](const Widths& widths) {
      ++n_measured;
      const auto [place, is_new] =
          noise.try_emplace(widths, std::normal_distribution<double>(0, 0.05)(random));
      CHECK(is_new);
      if (n_measured % 50 == 49) return place->second = INFINITY;
      double sum = place->second + cost_of(truth, widths);
      for (size_t space = 1; space < widths.size(); ++space)
        sum += 0.02 * std::abs(static_cast<double>(widths[space] - widths[space - 1]));
      return place->second = sum;
    };
    PlanOptions options;
    options.method = Method::kDpKl;
    options.grid = 8;
    options.levels = {0.4, 0.5, 0.6, 0.75, 0.9};
    options.search_steps = 60;
    const Problem problem(spec, options);
    const std::vector<std::vector<Widths>> starts{plan::solve_dynamic(problem, curves),
                                                  plan::solve_uniform(problem).widths};
    const plan::SearchResult found =
        plan::local_search(problem, curves, starts, measure, options.search_steps);
    CHECK(found.n_moves <= 60);
    CHECK(n_measured <= 60 + 10 + 5);
    double sum = 0;
    for (const double loss : found.loss) sum += loss;
    for (const auto& start : starts) {
      double of_start = 0;
      for (const Widths& widths : start) of_start += noise.at(widths);
      CHECK(sum <= of_start);
    }
    Widths above = full_widths(spec);
    for (size_t level = found.widths.size(); level-- > 0;) {
      CHECK(found.loss[level] <= found.start_loss[level]);
      CHECK(found.loss[level] == noise.at(found.widths[level]));
      for (size_t space = 0; space < above.size(); ++space) {
        CHECK(found.widths[level][space] <= above[space]);
        const auto& ladder = problem.ladders[space];
        CHECK(std::find(ladder.begin(), ladder.end(), found.widths[level][space]) != ladder.end());
      }
      const int64_t most = std::max({problem.targets[level] + problem.half_step(),
                                     problem.scale.of(starts[0][level]), problem.scale.of(starts[1][level])});
      CHECK(problem.scale.of(found.widths[level]) <= most);
      above = found.widths[level];
    }
  }
}

TEST_CASE("dp+kl: without moves it returns the better start, also with dropped layers") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 3, .d_ff = 64});
  const CostCurves curves = convex_curves(spec, {1, 2, 3, 4, 5, 6});
  PlanOptions options;
  options.grid = 8;
  options.levels = {0.35};
  options.depth = true;
  const Problem problem(spec, options);
  const Widths start = plan::solve_dynamic(problem, curves)[0];
  const Widths uniform = plan::solve_uniform(problem).widths[0];
  const plan::MeasureLoss measure = [&](const Widths& widths) { return cost_of(curves, widths); };
  REQUIRE(measure(start) < measure(uniform));
  const plan::SearchResult found = plan::local_search(problem, curves, {{uniform}, {start}}, measure, 0);
  CHECK(found.widths[0] == start);
  CHECK(found.n_moves == 0);
  const plan::SearchResult searched = plan::local_search(problem, curves, {{start}}, measure, 50);
  for (size_t space = 0; space < start.size(); ++space)
    CHECK((searched.widths[0][space] == 0) == (start[space] == 0));
}

TEST_CASE("dp+kl: starts below their budget are filled up, and so is what moves leave over") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4, .n_kv_heads = 1, .d_ff = 96});
  std::mt19937 random(4);
  const CostCurves curves = convex_curves(spec, random_weights(spec, random));
  PlanOptions options;
  options.grid = 8;
  options.levels = {0.5, 0.8};
  const Problem problem(spec, options);
  const plan::MeasureLoss measure = [&](const Widths& widths) { return cost_of(curves, widths); };
  std::vector<Widths> start = plan::solve_dynamic(problem, curves);
  for (Widths& widths : start)
    for (size_t space = 0; space < widths.size(); ++space)
      widths[space] = std::max(widths[space] - options.grid, problem.ladders[space].front());
  const plan::SearchResult found = plan::local_search(problem, curves, {start}, measure, 3);
  for (size_t level = 0; level < start.size(); ++level) {
    const int64_t left = problem.targets[level] + problem.half_step() - problem.scale.of(found.widths[level]);
    CHECK(left >= 0);
    CHECK(left < 2 * problem.half_step());
    CHECK(found.loss[level] == measure(found.widths[level]));
    for (size_t space = 0; level == 0 && space < spec.spaces.size(); ++space)
      CHECK(found.widths[0][space] <= found.widths[1][space]);
  }
}

}  // namespace elastify
