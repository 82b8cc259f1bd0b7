#include "plan/make_plan.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "base/error.h"
#include "plan/local_search.h"
#include "plan/methods.h"

namespace elastify::plan {
namespace {

constexpr double kWorthANote = 0.01;
constexpr std::pair<Method, std::string_view> kMethods[] = {{Method::kUniform, "uniform"},
                                                            {Method::kAnchors, "anchors"},
                                                            {Method::kZscore, "zscore"},
                                                            {Method::kDp, "dp"},
                                                            {Method::kDpKl, "dp+kl"}};

bool goes_by_curves(Method method) {
  return method == Method::kDp || method == Method::kDpKl;
}

void check_options(const PlanOptions& options) {
  if (options.grid < 1) throw UsageError(fmt::format("grid: expected 1 or more, got {}", options.grid));
  if (!(options.anchor_share >= 0 && options.anchor_share <= 1))
    throw UsageError(fmt::format("anchor_share: expected 0 to 1, got {}", options.anchor_share));
  if (!(options.min_width >= 0 && options.min_width <= 1))
    throw UsageError(fmt::format("min_width: expected 0 to 1, got {}", options.min_width));
  if (options.search_steps < 0)
    throw UsageError(fmt::format("search_steps: expected 0 or more, got {}", options.search_steps));
  if (options.depth && !goes_by_curves(options.method))
    throw UsageError(fmt::format("depth: the plan `{}` drops no layers", name_of(options.method)),
                     "plan `dp` or `dp+kl`");
}

const Profile& require_scores(const Profile* profile, const PlanOptions& options) {
  if (profile != nullptr) return *profile;
  throw Error(fmt::format("the plan `{}` needs a profile with {} importance", name_of(options.method),
                          name_of(options.metric)),
              "measure one on this model with `elastify profile`, or plan `uniform`");
}

CostCurves prepare_curves(const ModelSpec& spec, const Profile* profile, const PlanOptions& options,
                          const CostCurves* curves) {
  return non_increasing(
      spec, curves != nullptr ? *curves
                              : curves_from_scores(spec, require_scores(profile, options), options.metric));
}

/// `dp+kl` out of what `dp` found.
std::vector<Widths> search_widths(const Problem& problem, const CostCurves& curves,
                                  std::vector<Widths> dynamic, const MeasureLoss& measure, int64_t n_moves,
                                  ElasticPlan& plan) {
  std::vector<std::vector<Widths>> starts{std::move(dynamic)};
  try {
    starts.push_back(solve_uniform(problem).widths);
  } catch (const Error&) {
    // Levels that only dropped layers reach have no uniform plan.
  }
  SearchResult found = local_search(problem, curves, starts, measure, n_moves);
  plan.curves += fmt::format("; {} moves measured, {} of them kept", found.n_moves, found.n_accepted);
  for (size_t level = 0; level < found.widths.size(); ++level)
    plan.notes.push_back(fmt::format("level {}: measured loss {:.4g}, {:.4g} before the search",
                                     problem.levels[level], found.loss[level], found.start_loss[level]));
  return std::move(found.widths);
}

void note_anchors(ElasticPlan& plan, double level, size_t n_anchors) {
  if (n_anchors >= plan.anchors.size()) return;
  const std::vector<int64_t> given_up(plan.anchors.begin() + static_cast<long>(n_anchors),
                                      plan.anchors.end());
  plan.notes.push_back(fmt::format("level {}: too low for {} anchors; layers given up: {}", level,
                                   plan.anchors.size(), fmt::join(given_up, ", ")));
}

void note_ratio(ElasticPlan& plan, size_t index, const Scale& scale) {
  const Level& level = plan.levels[index];
  if (std::abs(level.budget_ratio - level.nominal) > kWorthANote)
    plan.notes.push_back(fmt::format(
        "level {}: keeps {:.4f} of the {}, the nearest that whole KV groups and MLP widths in steps "
        "of {} reach while levels stay nested",
        level.nominal, level.budget_ratio, scale.noun(), plan.grid));
  if (level.widths == plan.levels[index + 1].widths)
    plan.notes.push_back(
        fmt::format("level {}: as wide as level {}", level.nominal, plan.levels[index + 1].nominal));
}

}  // namespace

Method method_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const auto& [method, known] : kMethods) {
    if (known == name) return method;
    names.push_back(known);
  }
  throw UsageError(fmt::format("unknown plan '{}'; known are {}", name, fmt::join(names, ", ")));
}

std::string_view name_of(Method method) {
  for (const auto& [known, name] : kMethods)
    if (known == method) return name;
  fail("unknown plan {}", static_cast<int>(method));
}

ElasticPlan make_plan(const ModelSpec& spec, const Profile* profile, const PlanOptions& options,
                      const CostCurves* curves, const MeasureLoss& measure) {
  check_options(options);
  if (options.method == Method::kDpKl && !measure)
    throw Error("the plan `dp+kl` measures sub-models, and nothing here can",
                "`elastify reorder` and `elastify sweep` can; `dp` goes by cost curves alone");
  const Problem problem(spec, options);
  ElasticPlan plan;
  plan.spec_hash = spec_hash(spec);
  plan.method = name_of(options.method);
  plan.grid = options.grid;
  plan.budget = to_text(options.budget);

  std::vector<Widths> widths;
  std::vector<size_t> n_anchors;
  switch (options.method) {
    case Method::kUniform:
    case Method::kAnchors: {
      UniformSolution solution = options.method == Method::kUniform
                                     ? solve_uniform(problem)
                                     : solve_uniform(problem, profile, options.anchor_share);
      widths = std::move(solution.widths);
      plan.anchors = std::move(solution.anchors);
      n_anchors = std::move(solution.n_anchors);
      break;
    }
    case Method::kZscore:
      plan.curves = fmt::format("{} scores, standardised within each space", name_of(options.metric));
      widths = solve_zscore(problem, falling_scores(spec, require_scores(profile, options), options.metric));
      break;
    case Method::kDp:
    case Method::kDpKl: {
      const CostCurves prepared = prepare_curves(spec, profile, options, curves);
      plan.curves = prepared.source;
      widths = solve_dynamic(problem, prepared);
      if (options.method == Method::kDpKl)
        widths = search_widths(problem, prepared, std::move(widths), measure, options.search_steps, plan);
      break;
    }
  }

  const auto add_level = [&](double nominal, Widths of_level) {
    const double share = problem.scale.share(of_level);
    plan.levels.push_back(make_level(spec, nominal, std::move(of_level)));
    plan.levels.back().budget_ratio = share;
  };
  for (size_t i = 0; i < widths.size(); ++i) add_level(problem.levels[i], std::move(widths[i]));
  add_level(1, full_widths(spec));
  for (size_t i = 0; i < widths.size(); ++i) {
    if (!n_anchors.empty()) note_anchors(plan, problem.levels[i], n_anchors[i]);
    note_ratio(plan, i, problem.scale);
  }
  return plan;
}

}  // namespace elastify::plan
