#include "plan/local_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"

namespace elastify::plan {
namespace {

constexpr double kWorst = std::numeric_limits<double>::infinity();

/// Caches measured losses.
class Measured {
 public:
  explicit Measured(const MeasureLoss& measure) : measure_(measure) {}
  double operator()(const Widths& widths) {
    const auto known = losses_.find(widths);
    if (known != losses_.end()) return known->second;
    const double loss = measure_(widths);
    return losses_[widths] = std::isfinite(loss) ? loss : kWorst;
  }
  bool knows(const Widths& widths) const { return losses_.contains(widths); }

 private:
  const MeasureLoss& measure_;
  std::map<Widths, double> losses_;
};

bool is_within(const Widths& narrow, const Widths& wide) {
  for (size_t space = 0; space < narrow.size(); ++space)
    if (narrow[space] > wide[space]) return false;
  return true;
}

/// Chooses the start that every level takes, so that levels are nested and the sum of their losses is least.
/// Goes from the narrowest level up and keeps the best way to each start's widths.
std::vector<size_t> choose_starts(const std::vector<std::vector<Widths>>& starts,
                                  const std::vector<std::vector<double>>& losses) {
  const size_t n_levels = starts.front().size(), n_starts = starts.size();
  std::vector<std::vector<size_t>> from(n_levels, std::vector<size_t>(n_starts));
  std::vector<double> total(n_starts, 0);
  for (size_t level = 0; level < n_levels; ++level) {
    std::vector<double> next(n_starts, kWorst);
    for (size_t start = 0; start < n_starts; ++start) {
      from[level][start] = start;
      if (level > 0) {
        next[start] = total[start];  // every start is nested in itself
        for (size_t below = 0; below < n_starts; ++below)
          if (total[below] < next[start] && is_within(starts[below][level - 1], starts[start][level]))
            next[start] = total[below], from[level][start] = below;
      } else {
        next[start] = 0;
      }
      next[start] += losses[start][level];
    }
    total = std::move(next);
  }
  std::vector<size_t> chosen(n_levels);
  size_t start = static_cast<size_t>(std::min_element(total.begin(), total.end()) - total.begin());
  for (size_t level = n_levels; level-- > 0;) {
    chosen[level] = start;
    start = from[level][start];
  }
  return chosen;
}

struct Move {
  size_t giver, taker;
  int64_t giver_width, taker_width;  ///< after the move
  double predicted;                  ///< rise of the cost by the curves
};

class Search {
 public:
  Search(const Problem& problem, const CostCurves& curves, Measured& measured, SearchResult& result)
      : problem_(problem), curves_(curves), measured_(measured), result_(result) {
    failures_.assign(problem.levels.size(), std::vector<int64_t>(problem.ladders.size(), 0));
    for (const int64_t target : problem.targets)
      capacity_.push_back(std::min(target + problem.half_step(), problem.scale.full()));
    // A start may weigh slightly more than its level may. Then its weight becomes the limit.
    for (size_t level = 0; level < capacity_.size(); ++level)
      capacity_[level] = std::max(capacity_[level], problem.scale.of(result.widths[level]));
  }

  /// Measures up to `n_moves` moves of a level.
  /// \returns whether there was any left to measure
  bool improve(size_t level, int64_t n_moves) {
    bool found = false;
    while (n_moves > 0) {
      const std::optional<Move> move = propose(level);
      if (!move) break;
      found = true;
      --n_moves;
      ++result_.n_moves;
      Widths moved = apply(level, *move);
      const double loss = measured_(moved);
      if (loss < result_.loss[level]) {
        ++result_.n_accepted;
        result_.widths[level] = std::move(moved);
        result_.loss[level] = loss;
      } else {
        ++failures_[level][move->giver];
        ++failures_[level][move->taker];
      }
    }
    return found;
  }

  /// Widens what still fits, unless that measures worse. Weight may be left over because a KV group frees
  /// more than the last steps of an MLP take.
  void spend_rest(size_t level) {
    Widths wider = result_.widths[level];
    const bool is_widest = level + 1 == result_.widths.size();
    fill_up(problem_, curves_, is_widest ? full_widths(problem_.spec) : result_.widths[level + 1],
            capacity_[level], wider);
    const double loss = measured_(wider);
    if (loss > result_.loss[level]) return;
    result_.widths[level] = std::move(wider);
    result_.loss[level] = loss;
  }

 private:
  int64_t least(size_t level, size_t space) const {
    return level > 0 ? std::max(result_.widths[level - 1][space], problem_.ladders[space].front())
                     : problem_.ladders[space].front();
  }
  int64_t most(size_t level, size_t space) const {
    return level + 1 < result_.widths.size() ? result_.widths[level + 1][space]
                                             : problem_.ladders[space].back();
  }
  double cost(size_t space, int64_t width) const { return curves_.cost[space][static_cast<size_t>(width)]; }
  Widths apply(size_t level, const Move& move) const {
    Widths moved = result_.widths[level];
    moved[move.giver] = move.giver_width;
    moved[move.taker] = move.taker_width;
    return moved;
  }

  /// The smallest exchange between two spaces within the budget: one step of the space with the larger steps,
  /// and as many steps of the other as that pays for or takes.
  std::optional<Move> exchange(size_t level, size_t giver, size_t taker) const {
    const Widths& widths = result_.widths[level];
    const std::vector<int64_t>&down = problem_.ladders[giver], &up = problem_.ladders[taker];
    if (giver == taker || widths[giver] == 0 || widths[taker] == 0) return std::nullopt;
    const int64_t left = capacity_[level] - problem_.scale.of(widths);
    auto lower = std::lower_bound(down.begin(), down.end(), widths[giver]);
    auto upper = std::upper_bound(up.begin(), up.end(), widths[taker]);
    if (upper == up.end() || *upper > most(level, taker)) return std::nullopt;
    const int64_t per_giver = problem_.scale.per_unit(giver), per_taker = problem_.scale.per_unit(taker);
    const auto freed = [&] { return left + per_giver * (widths[giver] - *lower); };
    do {
      if (lower == down.begin() || *(lower - 1) < least(level, giver)) return std::nullopt;
      --lower;
    } while (freed() < per_taker * (*upper - widths[taker]));
    while (upper + 1 != up.end() && *(upper + 1) <= most(level, taker) &&
           per_taker * (*(upper + 1) - widths[taker]) <= freed())
      ++upper;
    return Move{
        giver, taker, *lower, *upper,
        cost(giver, *lower) - cost(giver, widths[giver]) + cost(taker, *upper) - cost(taker, widths[taker])};
  }

  /// The most promising move that has not been measured yet. Moves of spaces with fewer failures come first.
  std::optional<Move> propose(size_t level) const {
    std::optional<Move> best;
    int64_t best_failures = 0;
    for (size_t giver = 0; giver < problem_.ladders.size(); ++giver)
      for (size_t taker = 0; taker < problem_.ladders.size(); ++taker) {
        const int64_t failures = failures_[level][giver] + failures_[level][taker];
        if (best && failures > best_failures) continue;
        const std::optional<Move> move = exchange(level, giver, taker);
        if (!move) continue;
        if (best && failures == best_failures && move->predicted >= best->predicted) continue;
        if (measured_.knows(apply(level, *move))) continue;
        best = move;
        best_failures = failures;
      }
    return best;
  }

  const Problem& problem_;
  const CostCurves& curves_;
  Measured& measured_;
  SearchResult& result_;
  std::vector<std::vector<int64_t>> failures_;  ///< [levels][spaces] moves that did not measure better
  std::vector<int64_t> capacity_;               ///< [levels]
};

}  // namespace

SearchResult local_search(const Problem& problem, const CostCurves& curves,
                          const std::vector<std::vector<Widths>>& starts, const MeasureLoss& measure,
                          int64_t n_moves) {
  SearchResult result;
  if (problem.levels.empty()) return result;
  Measured measured(measure);
  std::vector<std::vector<double>> losses;
  for (const std::vector<Widths>& start : starts) {
    auto& of_start = losses.emplace_back();
    for (const Widths& widths : start) of_start.push_back(measured(widths));
  }
  const std::vector<size_t> chosen = choose_starts(starts, losses);
  for (size_t level = 0; level < chosen.size(); ++level) {
    result.widths.push_back(starts[chosen[level]][level]);
    result.loss.push_back(losses[chosen[level]][level]);
  }
  result.start_loss = result.loss;

  Search search(problem, curves, measured, result);
  // Levels take turns, because the moves of a level depend on its neighbours. The narrowest comes first,
  // because it loses most.
  const auto n_levels = static_cast<int64_t>(chosen.size());
  bool found = true;
  while (found && result.n_moves < n_moves) {
    found = false;
    const int64_t share = std::max<int64_t>((n_moves - result.n_moves) / (2 * n_levels), 1);
    for (size_t level = 0; level < chosen.size() && result.n_moves < n_moves; ++level)
      found = search.improve(level, share) || found;
  }
  for (size_t level = chosen.size(); level-- > 0;) search.spend_rest(level);
  return result;
}

}  // namespace elastify::plan
