#include <algorithm>
#include <limits>
#include <numeric>
#include <span>

#include "base/error.h"
#include "plan/methods.h"

namespace elastify::plan {
namespace {

constexpr int64_t kMostCells = 32768;
constexpr size_t kMostOptions = 512;
constexpr double kUnreached = std::numeric_limits<double>::infinity();

/// One width a space can take.
struct Option {
  int64_t width, weight;
  double cost;
};

/// The cheapest choice of widths found so far whose weight falls into one cell.
struct Cell {
  double cost = kUnreached;
  int64_t weight = 0;
};
using Cells = std::vector<Cell>;

/// Finds the widths of one level that cost least within a weight. Each is at most that of the level above.
class Knapsack {
 public:
  Knapsack(const Problem& problem, const CostCurves& curves, const Widths& above, int64_t capacity)
      : problem_(problem), curves_(curves), above_(above), capacity_(capacity - problem.scale.fixed()) {
    int64_t divisor = 0;
    for (size_t space = 0; space < above.size(); ++space) {
      options_.push_back(options_of(space));
      for (const Option& option : options_.back()) divisor = std::gcd(divisor, option.weight);
    }
    const int64_t finest = (capacity_ + kMostCells - 1) / kMostCells;
    divisor = std::max<int64_t>({divisor, finest, 1});
    n_cells_ = static_cast<size_t>(capacity_ / divisor) + 1;
    per_weight_ = 1 / static_cast<double>(divisor);
    int64_t to_come = 0;
    for (int64_t layer = problem.spec.n_layers; layer-- > 0;) {
      most_after_.insert(most_after_.begin(), capacity_ - to_come);
      to_come += least_weight(layer);
    }
  }

  Widths solve() {
    const int64_t n_layers = problem_.spec.n_layers;
    std::vector<Cells> before{Cells(n_cells_)};
    before[0][0] = {0, 0};
    for (int64_t layer = 0; layer < n_layers; ++layer) before.push_back(add_layer(layer, before.back()));
    Widths widths = trace_back(before);
    // Weight may be left over: options are thinned out, a cell stands for several weights, and some costs
    // differ only by rounding.
    fill_up(problem_, curves_, above_, capacity_ + problem_.scale.fixed(), widths);
    return widths;
  }

 private:
  /// The options of a space, from the narrowest up. A dropped space (width 0) comes first if it is allowed.
  std::vector<Option> options_of(size_t space) const {
    std::vector<int64_t> widths;
    const int64_t most = above_[space];
    for (const int64_t width : problem_.ladders[space])
      if (width <= most) widths.push_back(width);
    if (widths.size() > kMostOptions) {
      const size_t stride = (widths.size() + kMostOptions - 1) / kMostOptions;
      std::vector<int64_t> thinned;
      for (size_t i = 0; i < widths.size(); i += stride) thinned.push_back(widths[i]);
      if (thinned.back() != most) thinned.push_back(most);
      widths = std::move(thinned);
    }
    if (problem_.may_drop(space)) widths.insert(widths.begin(), 0);
    std::vector<Option> options;
    for (const int64_t width : widths)
      options.push_back(
          {width, problem_.scale.of(space, width), curves_.cost[space][static_cast<size_t>(width)]});
    return options;
  }

  using Options = std::span<const Option>;
  Options attention(int64_t layer) const { return options_[problem_.spec.attention_space(layer)]; }
  Options mlp(int64_t layer) const { return options_[problem_.spec.mlp_space(layer)]; }
  static Options kept(Options options) { return options.subspan(options.front().width == 0 ? 1 : 0); }
  /// Empty if the space may not be dropped.
  static Options dropped(Options options) { return options.first(options.front().width == 0 ? 1 : 0); }

  int64_t least_weight(int64_t layer) const {
    // The first options go together: both spaces are dropped, only the attention is, or neither is.
    return attention(layer).front().weight + mlp(layer).front().weight;
  }

  size_t cell_of(int64_t weight) const {
    return std::min(static_cast<size_t>(static_cast<double>(weight) * per_weight_ + 1e-9), n_cells_ - 1);
  }

  void offer(Cells& cells, int64_t weight, double cost) const {
    Cell& cell = cells[cell_of(weight)];
    if (cost < cell.cost || (cost == cell.cost && weight < cell.weight)) cell = {cost, weight};
  }

  /// Adds the attention of the layer, and leaves room for the narrowest of these options of its MLP.
  Cells add_attention(int64_t layer, const Cells& before, Options across, Options down) const {
    Cells after(n_cells_);
    if (!down.empty())
      add(before, across, most_after_[static_cast<size_t>(layer)] - down.front().weight, after);
    return after;
  }

  /// Adds all pairs of widths of a layer. An MLP may be dropped only together with the attention.
  Cells add_layer(int64_t layer, const Cells& before) const {
    const int64_t most = most_after_[static_cast<size_t>(layer)];
    const Options across = attention(layer), down = mlp(layer);
    Cells after(n_cells_);
    add(add_attention(layer, before, kept(across), kept(down)), kept(down), most, after);
    if (!dropped(across).empty()) add(add_attention(layer, before, dropped(across), down), down, most, after);
    return after;
  }

  void add(const Cells& from, Options options, int64_t most, Cells& to) const {
    for (const Cell& cell : from) {
      if (cell.cost == kUnreached) continue;
      for (const Option& option : options) {
        const int64_t weight = cell.weight + option.weight;
        if (weight > most) break;
        offer(to, weight, cell.cost + option.cost);
      }
    }
  }

  /// Finds the option that led from some cell to this one; `cell` becomes that cell. Sums are formed as on
  /// the way forward, so that they compare equal.
  const Option* find_option(const Cells& from, Options options, Cell& cell) const {
    for (const Option& option : options) {
      const int64_t weight = cell.weight - option.weight;
      if (weight < 0) break;
      const Cell& candidate = from[cell_of(weight)];
      if (candidate.weight != weight || candidate.cost + option.cost != cell.cost) continue;
      cell = candidate;
      return &option;
    }
    return nullptr;
  }

  Widths trace_back(const std::vector<Cells>& before) const {
    // Among equally good cells, the heaviest is taken.
    Cell cell;
    for (const Cell& last : before.back())
      if (last.cost < kUnreached && last.cost <= cell.cost) cell = last;
    Widths widths(above_.size(), 0);
    for (int64_t layer = problem_.spec.n_layers; layer-- > 0;) {
      const Cells& from = before[static_cast<size_t>(layer)];
      Options across = kept(attention(layer)), down = kept(mlp(layer));
      const Option* chosen = find_option(add_attention(layer, from, across, down), down, cell);
      if (chosen == nullptr) {
        across = dropped(attention(layer)), down = mlp(layer);
        chosen = find_option(add_attention(layer, from, across, down), down, cell);
      }
      const Option* of_attention = find_option(from, across, cell);
      if (chosen == nullptr || of_attention == nullptr)
        fail("layer {}: the table of widths does not lead to this level", layer);
      widths[problem_.spec.mlp_space(layer)] = chosen->width;
      widths[problem_.spec.attention_space(layer)] = of_attention->width;
    }
    return widths;
  }

  const Problem& problem_;
  const CostCurves& curves_;
  const Widths& above_;
  int64_t capacity_;  ///< the level's weight without the part that belongs to no space
  std::vector<std::vector<Option>> options_;
  std::vector<int64_t> most_after_;  ///< [layers] most weight that leaves room for the later layers
  size_t n_cells_ = 0;
  double per_weight_ = 1;
};

}  // namespace

void fill_up(const Problem& problem, const CostCurves& curves, const Widths& above, int64_t capacity,
             Widths& widths) {
  int64_t left = capacity - problem.scale.of(widths);
  for (;;) {
    size_t best = widths.size();
    int64_t best_width = 0;
    double best_gain = -1;
    for (size_t space = 0; space < widths.size(); ++space) {
      if (widths[space] == 0) continue;
      const auto& ladder = problem.ladders[space];
      const auto next = std::upper_bound(ladder.begin(), ladder.end(), widths[space]);
      if (next == ladder.end() || *next > above[space]) continue;
      const int64_t weight = problem.scale.per_unit(space) * (*next - widths[space]);
      if (weight > left) continue;
      const auto& cost = curves.cost[space];
      const double gain = (cost[static_cast<size_t>(widths[space])] - cost[static_cast<size_t>(*next)]) /
                          static_cast<double>(weight);
      if (gain > best_gain) best = space, best_width = *next, best_gain = gain;
    }
    if (best == widths.size()) return;
    left -= problem.scale.per_unit(best) * (best_width - widths[best]);
    widths[best] = best_width;
  }
}

std::vector<Widths> solve_dynamic(const Problem& problem, const CostCurves& curves) {
  const int64_t slack = problem.half_step();
  problem.require_reachable(problem.narrowest(), slack);
  std::vector<Widths> result(problem.levels.size());
  Widths above = full_widths(problem.spec);
  for (size_t level = result.size(); level-- > 0;) {
    const int64_t capacity = std::min(problem.targets[level] + slack, problem.scale.full());
    above = Knapsack(problem, curves, above, capacity).solve();
    result[level] = above;
  }
  return result;
}

}  // namespace elastify::plan
