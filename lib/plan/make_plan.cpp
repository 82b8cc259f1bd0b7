#include "plan/make_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/ranges.h>

#include "base/error.h"
#include "plan/local_search.h"
#include "plan/methods.h"

namespace elastify::plan {
namespace {

/// A level gets a note if its true share is off by more than this.
constexpr double kWorthANote = 0.01;

void check_options(const PlanOptions& options) {
  if (options.grid < 1) throw UsageError(fmt::format("grid: expected 1 or more, got {}", options.grid));
  if (!(options.anchor_share >= 0 && options.anchor_share <= 1))
    throw UsageError(fmt::format("anchor_share: expected 0 to 1, got {}", options.anchor_share));
  if (!(options.min_width >= 0 && options.min_width <= 1))
    throw UsageError(fmt::format("min_width: expected 0 to 1, got {}", options.min_width));
  if (options.search_steps < 0)
    throw UsageError(fmt::format("search_steps: expected 0 or more, got {}", options.search_steps));
  if (options.search_seq != 0 && options.search_seq < 2)
    throw UsageError(fmt::format("search_seq: expected 0, or 2 or more, got {}", options.search_seq));
  if (options.depth && !facts_of(options.method).drops_layers)
    throw UsageError(fmt::format("depth: the plan `{}` drops no layers", name_of(options.method)),
                     "plan `dp` or `dp+kl`");
}

const Profile& require_scores(const Profile* profile, const PlanOptions& options) {
  if (profile != nullptr) return *profile;
  if (options.method == Method::kShortGpt)
    throw Error("the plan `shortgpt` needs a profile with the influence of every layer",
                "measure one on this model with `elastify profile --second-moments`");
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

/// Returns the loss at the removal of every layer, which `anchors` needs.
const std::vector<double>& require_removal_loss(const ModelSpec& spec, const Profile* profile) {
  constexpr const char* kHint = "measure one on this model with `elastify profile`, or plan `uniform`";
  if (profile == nullptr || profile->removal_loss.empty())
    throw Error("the plan `anchors` needs a profile with the loss at the removal of every layer", kHint);
  if (profile->spec_hash != spec_hash(spec)) throw Error("the profile was measured on another model", kHint);
  const std::vector<double>& loss = profile->removal_loss;
  if (static_cast<int64_t>(loss.size()) != spec.n_layers)
    throw Error(fmt::format("removal_loss: expected {} layers, got {}", spec.n_layers, loss.size()), kHint);
  if (std::any_of(loss.begin(), loss.end(), [](double value) { return std::isnan(value); }))
    throw Error("removal_loss: not a number", kHint);
  return loss;
}

/// The cost of narrowing each layer to half its width.
std::vector<double> half_costs(const ModelSpec& spec, const CostCurves& curves) {
  std::vector<double> costs(static_cast<size_t>(spec.n_layers), 0);
  for (size_t space = 0; space < curves.cost.size(); ++space) {
    const std::vector<double>& cost = curves.cost[space];
    costs[static_cast<size_t>(spec.spaces[space].layer)] += cost[cost.size() / 2];
  }
  return costs;
}

/// Multiplies all costs of attention. A curve is about one space that is narrowed alone; if many attentions
/// are narrowed together, each costs more.
CostCurves with_dear_attention(const ModelSpec& spec, CostCurves curves, double factor) {
  for (size_t space = 0; space < curves.cost.size(); ++space)
    if (spec.spaces[space].kind == SpaceKind::kAttention)
      for (double& cost : curves.cost[space]) cost *= factor;
  return curves;
}

/// Brings levels to the weight that a plan with widths of its own per layer may have. A level that is too
/// heavy gives up the steps that cost least. What is left over goes where it lowers the cost most.
std::vector<Widths> brought_to_weight(const Problem& problem, const CostCurves& curves,
                                      std::vector<Widths> levels) {
  Widths above = full_widths(problem.spec);
  for (size_t level = levels.size(); level-- > 0;) {
    Widths& widths = levels[level];
    for (size_t space = 0; space < widths.size(); ++space)
      widths[space] = std::min(widths[space], above[space]);
    const int64_t capacity = problem.targets[level] + problem.half_step();
    while (problem.scale.of(widths) > capacity) {
      size_t best = widths.size();
      int64_t best_width = 0;
      double least = std::numeric_limits<double>::infinity();
      for (size_t space = 0; space < widths.size(); ++space) {
        const std::vector<int64_t>& ladder = problem.ladders[space];
        const auto here = std::lower_bound(ladder.begin(), ladder.end(), widths[space]);
        if (here == ladder.begin()) continue;
        const int64_t lower = *(here - 1);
        const std::vector<double>& cost = curves.cost[space];
        const double loss = (cost[static_cast<size_t>(lower)] - cost[static_cast<size_t>(widths[space])]) /
                            static_cast<double>(problem.scale.per_unit(space) * (widths[space] - lower));
        if (loss < least) best = space, best_width = lower, least = loss;
      }
      if (best == widths.size()) break;
      widths[best] = best_width;
    }
    fill_up(problem, curves, above, capacity, widths);
    above = widths;
  }
  return levels;
}

/// `dp+kl` out of what `dp` found.
SearchResult search_widths(const Problem& problem, const CostCurves& curves, std::vector<Widths> dynamic,
                           const MeasureLoss& measure, const Profile* profile, const PlanOptions& options) {
  constexpr double kDear[] = {4, 1000};
  std::vector<std::vector<Widths>> starts{std::move(dynamic)};
  for (const double factor : kDear)
    starts.push_back(solve_dynamic(problem, with_dear_attention(problem.spec, curves, factor)));
  std::vector<std::vector<double>> layer_losses{half_costs(problem.spec, curves)};
  if (profile != nullptr && !profile->removal_loss.empty())
    layer_losses.push_back(require_removal_loss(problem.spec, profile));
  const auto add = [&](std::vector<int64_t> anchors) {
    starts.push_back(brought_to_weight(problem, curves, solve_uniform(problem, std::move(anchors)).widths));
  };
  try {
    add({});
    for (const std::vector<double>& losses : layer_losses) add(choose_anchors(losses, options.anchor_share));
  } catch (const OutOfReach&) {
    // Levels that only dropped layers reach have no uniform plan.
  }
  return local_search(problem, curves, starts, measure, options.search_steps);
}

void note_search(ElasticPlan& plan, const Problem& problem, const SearchResult& found) {
  plan.curves += fmt::format("; {} moves measured, {} of them kept", found.n_moves, found.n_accepted);
  for (size_t level = 0; level < found.widths.size(); ++level)
    plan.notes.push_back(fmt::format("level {}: measured loss {:.4g}, {:.4g} before the search",
                                     problem.levels[level], found.loss[level], found.start_loss[level]));
}

/// Adds a note if widths split blocks of the type, because such widths cannot be stored in it.
void note_blocks(ElasticPlan& plan, const PlanOptions& options) {
  if (options.budget.kind != Budget::Kind::kBytes) return;
  const DTypeInfo& type = info(options.budget.type);
  if (options.grid % type.block_size == 0) return;
  plan.notes.push_back(fmt::format(
      "MLP widths in steps of {} split the blocks of {} values of {}: files in {} take a grid of {}",
      options.grid, type.block_size, type.name, type.name, type.block_size));
}

void note_anchors(ElasticPlan& plan, double level, size_t n_anchors) {
  if (n_anchors >= plan.anchors.size()) return;
  const std::vector<int64_t> given_up(plan.anchors.begin() + static_cast<long>(n_anchors),
                                      plan.anchors.end());
  plan.notes.push_back(fmt::format("level {}: too low for {} anchors; layers given up: {}", level,
                                   plan.anchors.size(), fmt::join(given_up, ", ")));
}

/// \param by_space  whether every space has a width of its own
void note_ratio(ElasticPlan& plan, size_t index, const Problem& problem, bool by_space) {
  const Level& level = plan.levels[index];
  const double step =
      2 * static_cast<double>(problem.half_step()) / static_cast<double>(problem.scale.full());
  if (std::abs(level.budget_ratio - level.nominal) > (by_space ? std::min(step, kWorthANote) : kWorthANote))
    plan.notes.push_back(
        fmt::format("level {}: keeps {:.4f} of the {}, the nearest that {} reach while levels stay nested",
                    level.nominal, level.budget_ratio, problem.scale.noun(),
                    plan.method == name_of(Method::kShortGpt)
                        ? "whole layers"
                        : fmt::format("whole KV groups and MLP widths in steps of {}", plan.grid)));
  if (level.widths == plan.levels[index + 1].widths)
    plan.notes.push_back(
        fmt::format("level {}: as wide as level {}", level.nominal, plan.levels[index + 1].nominal));
}

}  // namespace

ElasticPlan make_plan(const ModelSpec& spec, const Profile* profile, const PlanOptions& options,
                      const CostCurves* curves, const MeasureLoss& measure) {
  check_options(options);
  if (options.method == Method::kDpKl && !measure)
    throw Error("the plan `dp+kl` measures sub-models, which this command cannot",
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
      std::vector<int64_t> anchors;
      if (options.method == Method::kAnchors)
        anchors = choose_anchors(require_removal_loss(spec, profile), options.anchor_share);
      UniformSolution solution = solve_uniform(problem, std::move(anchors));
      widths = std::move(solution.widths);
      plan.anchors = std::move(solution.anchors);
      n_anchors = std::move(solution.n_anchors);
      break;
    }
    case Method::kZscore:
      plan.curves = fmt::format("{} scores, standardised within each space", name_of(options.metric));
      widths = solve_zscore(problem, falling_scores(spec, require_scores(profile, options), options.metric));
      break;
    case Method::kShortGpt:
      widths = solve_shortgpt(problem, require_scores(profile, options));
      break;
    case Method::kDp:
    case Method::kDpKl: {
      const CostCurves prepared = prepare_curves(spec, profile, options, curves);
      plan.curves = prepared.source;
      widths = solve_dynamic(problem, prepared);
      if (options.method == Method::kDpKl) {
        SearchResult found = search_widths(problem, prepared, std::move(widths), measure, profile, options);
        note_search(plan, problem, found);
        widths = std::move(found.widths);
      }
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
  note_blocks(plan, options);
  for (size_t i = 0; i < widths.size(); ++i) {
    if (!n_anchors.empty()) note_anchors(plan, problem.levels[i], n_anchors[i]);
    note_ratio(plan, i, problem,
               facts_of(options.method).measures_losses || options.method == Method::kZscore);
  }
  return plan;
}

double lowest_level(const ModelSpec& spec, const PlanOptions& options) {
  PlanOptions without_levels = options;
  without_levels.levels = {1};
  const Problem problem(spec, without_levels);
  constexpr double kDigits = 1e4;
  return std::ceil(problem.scale.share(problem.narrowest()) * kDigits) / kDigits;
}

}  // namespace elastify::plan
