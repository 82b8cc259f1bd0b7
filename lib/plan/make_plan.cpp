#include "plan/make_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include <fmt/ranges.h>

#include "base/error.h"

namespace elastify::plan {
namespace {

constexpr double kRounding =
    1e6;  // nominal ratios have six decimals, as level_name() and find_level() see them
constexpr size_t kMaxLevels = 100;
constexpr double kWorthANote = 0.01;

double rounded(double level) {
  return std::round(level * kRounding) / kRounding;
}

/// In rising order, without duplicates, the full model included.
std::vector<double> normalised(std::vector<double> levels) {
  for (double& level : levels) {
    if (!(rounded(level) > 0 && level <= 1))
      throw UsageError(
          fmt::format("levels: {} is not a share of the model; expected more than 0, up to 1", level),
          level > 1 && level <= 100 ? fmt::format("{} percent is {}", level, level / 100) : "");
    level = rounded(level);
  }
  levels.push_back(1);
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  if (levels.size() > kMaxLevels)
    throw UsageError(fmt::format("levels: {} of them, more than {}", levels.size(), kMaxLevels));
  return levels;
}

double parse_number(std::string_view text, std::string_view item) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    throw UsageError(fmt::format("levels: cannot read '{}'", item),
                     "expected numbers like 0.9,0.7,0.5 or a range low:high:step like 0.2:1.0:0.1");
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

void append_range(std::vector<double>& levels, const std::vector<double>& range, std::string_view item) {
  const double low = range[0], high = range[1], step = range[2];
  if (!(step > 0) || high < low || (high - low) / step > kMaxLevels)
    throw UsageError(fmt::format("levels: '{}' is not a range", item),
                     fmt::format("low:high:step, rising, with at most {} levels: 0.2:1.0:0.1", kMaxLevels));
  const auto n_steps = static_cast<int64_t>(std::floor((high - low) / step + 1e-6));
  for (int64_t i = 0; i <= n_steps; ++i) levels.push_back(rounded(low + static_cast<double>(i) * step));
}

/// Layers from the most to the least harmful to remove.
std::vector<int64_t> rank_layers(const ModelSpec& spec, const Profile* profile) {
  constexpr const char* kHint = "measure one on this model with `elastify profile`, or plan `uniform`";
  if (profile == nullptr || profile->removal_loss.empty())
    throw Error("the plan `anchors` needs a profile with the loss at the removal of every layer", kHint);
  if (profile->spec_hash != spec_hash(spec)) throw Error("the profile was measured on another model", kHint);
  const std::vector<double>& loss = profile->removal_loss;
  if (static_cast<int64_t>(loss.size()) != spec.n_layers)
    throw Error(fmt::format("removal_loss: expected {} layers, got {}", spec.n_layers, loss.size()), kHint);
  if (std::any_of(loss.begin(), loss.end(), [](double value) { return std::isnan(value); }))
    throw Error("removal_loss: not a number", kHint);
  std::vector<int64_t> layers(loss.size());
  std::iota(layers.begin(), layers.end(), 0);
  std::stable_sort(layers.begin(), layers.end(), [&](int64_t a, int64_t b) {
    return loss[static_cast<size_t>(a)] > loss[static_cast<size_t>(b)];
  });
  return layers;
}

std::vector<int64_t> choose_anchors(const ModelSpec& spec, const Profile* profile,
                                    const PlanOptions& options) {
  if (options.method == Method::kUniform) return {};
  std::vector<int64_t> layers = rank_layers(spec, profile);
  const auto asked = std::llround(options.anchor_share * static_cast<double>(spec.n_layers));
  const int64_t least = options.anchor_share > 0 ? 1 : 0;
  // Some layer has to carry the budget.
  layers.resize(static_cast<size_t>(std::min<int64_t>(std::max<int64_t>(asked, least), spec.n_layers - 1)));
  return layers;
}

/// A level's widths in three numbers: the first anchors stay full, every other layer gets `groups` and the
/// MLP width d_ff[ff], or all it has if that is less. Componentwise smaller means nested.
struct Choice {
  size_t n_anchors = 0;
  int64_t groups = 1;
  size_t ff = 0;
};

/// How bad a choice is, the worst first: parameters off the target beyond half a step; anchors given up; KV
/// groups off the ratio (millionths); parameters off the target.
struct Cost {
  int64_t excess = 0, given_up = 0, imbalance = 0, miss = 0;
  auto operator<=>(const Cost&) const = default;
  Cost operator+(const Cost& other) const {
    return {excess + other.excess, given_up + other.given_up, imbalance + other.imbalance, miss + other.miss};
  }
};

class Solver {
 public:
  Solver(const ModelSpec& spec, std::vector<int64_t> anchors, int64_t grid, std::vector<double> levels)
      : spec_(spec),
        anchors_(std::move(anchors)),
        grid_(grid),
        levels_(std::move(levels)),
        all_(n_decoder_params(spec, full_widths(spec))) {
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
      group_params_.push_back(params_per_unit(spec, spec.attention_space(layer)));
      neuron_params_.push_back(params_per_unit(spec, spec.mlp_space(layer)));
    }
    fixed_ = all_ - attention_params(0, spec.n_kv_heads()) - mlp_params(0, spec.d_ff());
    tabulate_attention();
    d_ff_ = candidates();
    for (size_t a = 0; a <= anchors_.size(); ++a) {
      std::vector<int64_t>& row = mlp_.emplace_back();
      for (const int64_t width : d_ff_) row.push_back(mlp_params(a, width));
    }
  }

  /// \throws Error if the lowest level is out of reach
  void require_reachable() const {
    const int64_t least = params({0, 1, 0});
    if (least <= target(levels_[0]) + half_step(0)) return;
    const double lowest = static_cast<double>(least) / static_cast<double>(all_);
    throw Error(fmt::format("level {}: the narrowest widths (one KV group, {} MLP neurons) keep {:.4f} of "
                            "the decoder weights",
                            levels_[0], d_ff_[0], lowest),
                fmt::format("the lowest ratio that can be met is {:.4f}{}", std::ceil(lowest * 1e4) / 1e4,
                            d_ff_[0] == grid_ && grid_ > 32 ? "; a finer grid goes lower" : ""));
  }

  /// One choice per level, nested, of the least total cost.
  std::vector<Choice> solve() const {
    const size_t n_states = (anchors_.size() + 1) * attention_[0].size() * d_ff_.size();
    std::vector<std::vector<int32_t>> best_below(levels_.size());
    std::vector<Cost> total(n_states);
    for (size_t level = 0; level < levels_.size(); ++level) {
      for (size_t state = 0; state < n_states; ++state)
        total[state] = total[state] + cost(levels_[level], choice(state));
      best_below[level] = spread_minimum(total);
    }
    std::vector<Choice> choices(levels_.size());
    size_t state = n_states - 1;
    for (size_t level = levels_.size(); level-- > 0;) {
      state = static_cast<size_t>(best_below[level][state]);
      choices[level] = choice(state);
    }
    return choices;
  }

  Widths widths(const Choice& choice) const {
    Widths result = full_widths(spec_);
    for (int64_t layer = 0; layer < spec_.n_layers; ++layer) {
      if (is_anchor(layer, choice.n_anchors)) continue;
      int64_t& groups = result[spec_.attention_space(layer)];
      int64_t& neurons = result[spec_.mlp_space(layer)];
      groups = std::min(groups, choice.groups);
      neurons = std::min(neurons, d_ff_[choice.ff]);
    }
    return result;
  }

 private:
  bool is_anchor(int64_t layer, size_t n_anchors) const {
    const auto end = anchors_.begin() + static_cast<long>(n_anchors);
    return std::find(anchors_.begin(), end, layer) != end;
  }

  template <typename PerLayer>
  int64_t sum_layers(size_t n_anchors, PerLayer&& of_layer) const {
    int64_t sum = 0;
    for (int64_t layer = 0; layer < spec_.n_layers; ++layer)
      sum += of_layer(static_cast<size_t>(layer), is_anchor(layer, n_anchors));
    return sum;
  }
  int64_t attention_params(size_t n_anchors, int64_t groups) const {
    return sum_layers(n_anchors, [&](size_t layer, bool anchor) {
      const int64_t full = spec_.layer_kv_heads[layer];
      return group_params_[layer] * (anchor ? full : std::min(full, groups));
    });
  }
  int64_t mlp_params(size_t n_anchors, int64_t d_ff) const {
    return sum_layers(n_anchors, [&](size_t layer, bool anchor) {
      const int64_t full = spec_.layer_d_ff[layer];
      return neuron_params_[layer] * (anchor ? full : std::min(full, d_ff));
    });
  }

  void tabulate_attention() {
    for (size_t a = 0; a <= anchors_.size(); ++a) {
      std::vector<int64_t>& row = attention_.emplace_back();
      for (int64_t groups = 1; groups <= spec_.n_kv_heads(); ++groups)
        row.push_back(attention_params(a, groups));
      step_.push_back(sum_layers(a, [&](size_t layer, bool anchor) {
        return anchor ? 0 : neuron_params_[layer] * std::min(grid_, spec_.layer_d_ff[layer]);
      }));
      // Of the layers that carry the budget, and of the anchors.
      const int64_t all_units = attention_params(0, spec_.n_kv_heads()) + mlp_params(0, spec_.d_ff());
      anchor_params_.push_back(attention_params(a, 0) + mlp_params(a, 0));
      carrier_params_.push_back(all_units - anchor_params_.back());
    }
  }

  /// MLP widths on the grid next to a level's solution for some number of anchors and groups, the narrowest
  /// and the full one: no other can be in the best plan.
  std::vector<int64_t> candidates() const {
    const int64_t full = spec_.d_ff();
    const int64_t n_steps = full / grid_;
    std::set<int64_t> widths{std::min(grid_, full), full};
    for (const double level : levels_) {
      for (size_t a = 0; a <= anchors_.size(); ++a) {
        for (const int64_t attention : attention_[a]) {
          const int64_t left = target(level) - fixed_ - attention;
          int64_t low = 0, high = n_steps;  // the widest multiple of the grid within the budget
          while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            if (mlp_params(a, middle * grid_) <= left) {
              low = middle;
            } else {
              high = middle - 1;
            }
          }
          for (const int64_t steps : {low, low + 1})
            if (steps >= 1 && steps <= n_steps) widths.insert(steps * grid_);
        }
      }
    }
    return {widths.begin(), widths.end()};
  }

  int64_t target(double level) const { return std::llround(level * static_cast<double>(all_)); }
  int64_t half_step(size_t n_anchors) const { return step_[n_anchors] / 2; }
  int64_t params(const Choice& choice) const {
    return fixed_ + attention_[choice.n_anchors][static_cast<size_t>(choice.groups - 1)] +
           mlp_[choice.n_anchors][choice.ff];
  }

  Cost cost(double level, const Choice& choice) const {
    const size_t a = choice.n_anchors;
    const int64_t miss = std::abs(params(choice) - target(level));
    const double share = static_cast<double>(target(level) - fixed_ - anchor_params_[a]) /
                         static_cast<double>(carrier_params_[a]);
    const double groups = std::clamp(share, 0.0, 1.0) * static_cast<double>(spec_.n_kv_heads());
    return {.excess = std::max<int64_t>(0, miss - half_step(a)),
            .given_up = static_cast<int64_t>(anchors_.size() - a),
            .imbalance = std::llround(std::abs(static_cast<double>(choice.groups) - groups) * kRounding),
            .miss = miss};
  }

  // States are the choices in row-major order: anchors, groups, MLP width.
  Choice choice(size_t state) const {
    const size_t n_groups = attention_[0].size(), n_ff = d_ff_.size();
    return {state / (n_groups * n_ff), static_cast<int64_t>(state / n_ff % n_groups) + 1, state % n_ff};
  }

  /// Replaces every entry by the least among those of choices nested in its own. \returns which one that was
  std::vector<int32_t> spread_minimum(std::vector<Cost>& total) const {
    const size_t n_ff = d_ff_.size(), n_below = attention_[0].size() * n_ff;
    std::vector<int32_t> from(total.size());
    std::iota(from.begin(), from.end(), 0);
    for (size_t state = 0; state < total.size(); ++state) {
      const auto take = [&](size_t other) {
        if (!(total[other] < total[state])) return;
        total[state] = total[other];
        from[state] = from[other];
      };
      if (state % n_ff >= 1) take(state - 1);
      if (state % n_below >= n_ff) take(state - n_ff);
      if (state >= n_below) take(state - n_below);
    }
    return from;
  }

  const ModelSpec& spec_;
  std::vector<int64_t> anchors_;
  int64_t grid_;
  std::vector<double> levels_;
  int64_t all_;                                        ///< decoder weights of the full model
  int64_t fixed_ = 0;                                  ///< those that belong to no space: norms
  std::vector<int64_t> group_params_, neuron_params_;  ///< [layers]
  std::vector<std::vector<int64_t>> attention_, mlp_;  ///< [anchors + 1][widths], weights over all layers
  std::vector<int64_t> step_, anchor_params_, carrier_params_;  ///< [anchors + 1]
  std::vector<int64_t> d_ff_;                                   ///< MLP widths to choose from, rising
};

void add_notes(ElasticPlan& plan, size_t index, size_t n_anchors) {
  const Level& level = plan.levels[index];
  if (n_anchors < plan.anchors.size()) {
    const std::vector<int64_t> given_up(plan.anchors.begin() + static_cast<long>(n_anchors),
                                        plan.anchors.end());
    plan.notes.push_back(fmt::format("level {}: too low for {} anchors; layers given up: {}", level.nominal,
                                     plan.anchors.size(), fmt::join(given_up, ", ")));
  }
  if (std::abs(level.decoder_ratio - level.nominal) > kWorthANote)
    plan.notes.push_back(
        fmt::format("level {}: keeps {:.4f} of the decoder weights, the nearest that whole KV groups and MLP "
                    "widths in steps of {} reach while levels stay nested",
                    level.nominal, level.decoder_ratio, plan.grid));
  if (index + 1 < plan.levels.size() && level.widths == plan.levels[index + 1].widths)
    plan.notes.push_back(
        fmt::format("level {}: as wide as level {}", level.nominal, plan.levels[index + 1].nominal));
}

}  // namespace

Method method_named(std::string_view name) {
  if (name == "uniform") return Method::kUniform;
  if (name == "anchors") return Method::kAnchors;
  throw UsageError(fmt::format("unknown plan '{}'; known are uniform, anchors", name));
}

std::vector<double> parse_levels(std::string_view text) {
  std::vector<double> levels;
  for (const std::string_view item : split(text, ',')) {
    std::vector<double> numbers;
    for (const std::string_view part : split(item, ':')) numbers.push_back(parse_number(part, item));
    if (numbers.size() == 1) {
      levels.push_back(numbers[0]);
    } else if (numbers.size() == 3) {
      append_range(levels, numbers, item);
    } else {
      throw UsageError(fmt::format("levels: '{}' is not a range", item), "low:high:step, as in 0.2:1.0:0.1");
    }
  }
  return normalised(std::move(levels));
}

ElasticPlan make_plan(const ModelSpec& spec, const Profile* profile, const PlanOptions& options) {
  if (options.grid < 1) throw UsageError(fmt::format("grid: expected 1 or more, got {}", options.grid));
  if (!(options.anchor_share >= 0 && options.anchor_share <= 1))
    throw UsageError(fmt::format("anchor_share: expected 0 to 1, got {}", options.anchor_share));
  const std::vector<double> nominal = normalised(options.levels);

  ElasticPlan plan;
  plan.spec_hash = spec_hash(spec);
  plan.method = options.method == Method::kUniform ? "uniform" : "anchors";
  plan.grid = options.grid;
  plan.anchors = choose_anchors(spec, profile, options);

  const std::vector<double> below(nominal.begin(), nominal.end() - 1);
  std::vector<size_t> n_anchors;
  if (!below.empty()) {
    const Solver solver(spec, plan.anchors, options.grid, below);
    solver.require_reachable();
    const std::vector<Choice> choices = solver.solve();
    for (size_t i = 0; i < below.size(); ++i) {
      plan.levels.push_back(make_level(spec, below[i], solver.widths(choices[i])));
      n_anchors.push_back(choices[i].n_anchors);
    }
  }
  plan.levels.push_back(make_level(spec, 1, full_widths(spec)));
  for (size_t i = 0; i < below.size(); ++i) add_notes(plan, i, n_anchors[i]);
  return plan;
}

}  // namespace elastify::plan
