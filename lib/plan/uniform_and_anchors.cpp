#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "base/error.h"
#include "plan/methods.h"

namespace elastify::plan {
namespace {

/// A level's widths in three numbers. The first anchors stay full; every other layer gets `groups` KV groups
/// and the MLP width d_ff[ff], or all it has if that is less. A choice that is smaller in every number is
/// nested.
struct Choice {
  size_t n_anchors = 0;
  int64_t groups = 1;
  size_t ff = 0;
};

/// How bad a choice is. In order of priority: weight off the target beyond half a step, anchors given up, KV
/// groups off the ratio (in millionths), weight off the target.
struct Cost {
  int64_t excess = 0, given_up = 0, imbalance = 0, miss = 0;
  auto operator<=>(const Cost&) const = default;
  Cost operator+(const Cost& other) const {
    return {excess + other.excess, given_up + other.given_up, imbalance + other.imbalance, miss + other.miss};
  }
};

class Solver {
 public:
  Solver(const Problem& problem, std::vector<int64_t> anchors)
      : problem_(problem),
        spec_(problem.spec),
        anchors_(std::move(anchors)),
        grid_(problem.grid),
        least_groups_(least_width({"", SpaceKind::kAttention, 0, spec_.n_kv_heads()}, 1, problem.min_width)),
        least_d_ff_(least_width({"", SpaceKind::kMlp, 0, spec_.d_ff()}, grid_, problem.min_width)) {
    for (int64_t layer = 0; layer < spec_.n_layers; ++layer) {
      group_weight_.push_back(problem.scale.per_unit(spec_.attention_space(layer)));
      neuron_weight_.push_back(problem.scale.per_unit(spec_.mlp_space(layer)));
    }
    fixed_ = problem.scale.full() - attention_weight(0, spec_.n_kv_heads()) - mlp_weight(0, spec_.d_ff());
    tabulate_attention();
    d_ff_ = candidates();
    for (size_t a = 0; a <= anchors_.size(); ++a) {
      std::vector<int64_t>& row = mlp_.emplace_back();
      for (const int64_t width : d_ff_) row.push_back(mlp_weight(a, width));
    }
  }

  /// \throws Error if the lowest level is out of reach
  void require_reachable() const {
    // Levels are stated with four digits, so this much is always allowed.
    const int64_t slack = std::max(half_step(0), problem_.scale.full() / 10000);
    problem_.require_reachable(widths({0, least_groups_, 0}), slack);
  }

  /// Returns one choice per level, nested, of the least total cost.
  std::vector<Choice> solve() const {
    const size_t n_states = (anchors_.size() + 1) * attention_[0].size() * d_ff_.size();
    std::vector<std::vector<int32_t>> best_below(problem_.targets.size());
    std::vector<Cost> total(n_states);
    for (size_t level = 0; level < problem_.targets.size(); ++level) {
      for (size_t state = 0; state < n_states; ++state)
        total[state] = total[state] + cost(problem_.targets[level], choice(state));
      best_below[level] = spread_minimum(total);
    }
    std::vector<Choice> choices(problem_.targets.size());
    size_t state = n_states - 1;
    for (size_t level = problem_.targets.size(); level-- > 0;) {
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
  int64_t attention_weight(size_t n_anchors, int64_t groups) const {
    return sum_layers(n_anchors, [&](size_t layer, bool anchor) {
      const int64_t full = spec_.layer_kv_heads[layer];
      return group_weight_[layer] * (anchor ? full : std::min(full, groups));
    });
  }
  int64_t mlp_weight(size_t n_anchors, int64_t d_ff) const {
    return sum_layers(n_anchors, [&](size_t layer, bool anchor) {
      const int64_t full = spec_.layer_d_ff[layer];
      return neuron_weight_[layer] * (anchor ? full : std::min(full, d_ff));
    });
  }

  void tabulate_attention() {
    for (size_t a = 0; a <= anchors_.size(); ++a) {
      std::vector<int64_t>& row = attention_.emplace_back();
      for (int64_t groups = least_groups_; groups <= spec_.n_kv_heads(); ++groups)
        row.push_back(attention_weight(a, groups));
      step_.push_back(sum_layers(a, [&](size_t layer, bool anchor) {
        // An MLP no wider than one step stays whole.
        return anchor || spec_.layer_d_ff[layer] <= grid_ ? 0 : neuron_weight_[layer] * grid_;
      }));
      // Weights of the anchors, and of the layers that carry the budget.
      const int64_t all_units = attention_weight(0, spec_.n_kv_heads()) + mlp_weight(0, spec_.d_ff());
      anchor_weight_.push_back(attention_weight(a, 0) + mlp_weight(a, 0));
      carrier_weight_.push_back(all_units - anchor_weight_.back());
    }
  }

  /// The MLP widths that can be in the best plan: for every level, number of anchors and number of groups the
  /// two widths on the grid next to the solution, and the narrowest and the full width.
  std::vector<int64_t> candidates() const {
    const int64_t full = spec_.d_ff();
    const int64_t n_steps = full / grid_;
    std::set<int64_t> widths{least_d_ff_, full};
    for (const int64_t target : problem_.targets) {
      for (size_t a = 0; a <= anchors_.size(); ++a) {
        for (const int64_t attention : attention_[a]) {
          const int64_t left = target - fixed_ - attention;
          int64_t low = 0, high = n_steps;  // the widest multiple of the grid within the budget
          while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            if (mlp_weight(a, middle * grid_) <= left) {
              low = middle;
            } else {
              high = middle - 1;
            }
          }
          for (const int64_t steps : {low, low + 1})
            if (steps * grid_ >= least_d_ff_ && steps <= n_steps) widths.insert(steps * grid_);
        }
      }
    }
    return {widths.begin(), widths.end()};
  }

  int64_t half_step(size_t n_anchors) const { return step_[n_anchors] / 2; }
  int64_t weight(const Choice& choice) const {
    return fixed_ + attention_[choice.n_anchors][static_cast<size_t>(choice.groups - least_groups_)] +
           mlp_[choice.n_anchors][choice.ff];
  }

  Cost cost(int64_t target, const Choice& choice) const {
    const size_t a = choice.n_anchors;
    const int64_t miss = std::abs(weight(choice) - target);
    const double share =
        static_cast<double>(target - fixed_ - anchor_weight_[a]) / static_cast<double>(carrier_weight_[a]);
    const double groups = std::clamp(share, 0.0, 1.0) * static_cast<double>(spec_.n_kv_heads());
    return {.excess = std::max<int64_t>(0, miss - half_step(a)),
            .given_up = static_cast<int64_t>(anchors_.size() - a),
            .imbalance = std::llround(std::abs(static_cast<double>(choice.groups) - groups) * kLevelRounding),
            .miss = miss};
  }

  // States are the choices in row-major order: anchors, groups, MLP width.
  Choice choice(size_t state) const {
    const size_t n_groups = attention_[0].size(), n_ff = d_ff_.size();
    return {state / (n_groups * n_ff), static_cast<int64_t>(state / n_ff % n_groups) + least_groups_,
            state % n_ff};
  }

  /// Replaces every entry by the least one among the choices nested in its own.
  /// \returns the choice that each entry came from
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

  const Problem& problem_;
  const ModelSpec& spec_;
  std::vector<int64_t> anchors_;
  int64_t grid_, least_groups_, least_d_ff_;
  int64_t fixed_ = 0;                                           ///< weight that belongs to no space: norms
  std::vector<int64_t> group_weight_, neuron_weight_;           ///< [layers] of one unit
  std::vector<std::vector<int64_t>> attention_, mlp_;           ///< [anchors + 1][widths], over all layers
  std::vector<int64_t> step_, anchor_weight_, carrier_weight_;  ///< [anchors + 1]
  std::vector<int64_t> d_ff_;                                   ///< MLP widths to choose from, rising
};

}  // namespace

std::vector<int64_t> choose_anchors(const std::vector<double>& removal_loss, double share) {
  std::vector<int64_t> layers(removal_loss.size());
  std::iota(layers.begin(), layers.end(), 0);
  std::stable_sort(layers.begin(), layers.end(), [&](int64_t a, int64_t b) {
    return removal_loss[static_cast<size_t>(a)] > removal_loss[static_cast<size_t>(b)];
  });
  const auto asked = std::llround(share * static_cast<double>(layers.size()));
  const int64_t least = share > 0 ? 1 : 0;
  // At least one layer has to carry the budget.
  const auto most = static_cast<int64_t>(layers.size()) - 1;
  layers.resize(static_cast<size_t>(std::min<int64_t>(std::max<int64_t>(asked, least), most)));
  return layers;
}

UniformSolution solve_uniform(const Problem& problem, std::vector<int64_t> anchors) {
  UniformSolution solution;
  solution.anchors = std::move(anchors);
  if (problem.levels.empty()) return solution;
  const Solver solver(problem, solution.anchors);
  solver.require_reachable();
  for (const Choice& choice : solver.solve()) {
    solution.widths.push_back(solver.widths(choice));
    solution.n_anchors.push_back(choice.n_anchors);
  }
  return solution;
}

}  // namespace elastify::plan
