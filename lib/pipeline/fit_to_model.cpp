#include "pipeline/fit_to_model.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "pipeline/presets.h"
#include "plan/make_plan.h"

namespace elastify::pipeline {
namespace {

/// Grid steps that an MLP has at least by default, so that levels can be met.
constexpr int64_t kLeastSteps = 8;

class Fitting {
 public:
  Fitting(RunConfig& config, const ModelSpec& spec) : config_(config), spec_(spec) {}

  void fit() {
    for (const auto& [key, seq] : {std::pair{"profile.seq", &config_.profile.text.seq},
                                   {"reorder.search_seq", &config_.reorder.plan.search_seq},
                                   {"eval.seq", &config_.eval.text.seq}})
      if (spec_.max_seq > 0) cap(key, *seq, spec_.max_seq, "the model's context");
    for (const auto& [key, tokens, seq] :
         {std::tuple{"profile.tokens", &config_.profile.text.tokens, config_.profile.text.seq},
          {"reorder.fit_tokens", &config_.reorder.fit_tokens, config_.profile.text.seq},
          {"eval.tokens", &config_.eval.text.tokens, config_.eval.text.seq}})
      if (*tokens > 0) raise(key, *tokens, seq, "one sequence");
    fit_grid();
    fit_levels();
    fit_rank();
  }

 private:
  std::string source_of(const std::string& key) const {
    const auto source = config_.sources.find(key);
    return source == config_.sources.end() ? "" : source->second;
  }
  bool given(const std::string& key) const {
    const std::string source = source_of(key);
    return !source.empty() && !source.starts_with("preset ");
  }
  template <typename T>
  void bend(const std::string& key, T& value, T fitting, const std::string& reason) {
    log::info("{}: {} instead of {}: {}", key, fitting, value, reason);
    value = fitting;
    config_.sources[key] = "fitted to the model: " + reason;
  }
  void cap(const std::string& key, int64_t& value, int64_t most, const std::string& noun) {
    if (value <= most) return;
    if (given(key))
      throw UsageError(fmt::format("{}: expected at most {}, {}, got {}", key, most, noun, value),
                       fmt::format("leave it out, or take {}", most));
    bend(key, value, most, fmt::format("{} is {}", noun, most));
  }
  void raise(const std::string& key, int64_t& value, int64_t least, const std::string& noun) {
    if (value >= least) return;
    if (given(key))
      throw UsageError(fmt::format("{}: expected at least {}, {}, got {}", key, least, noun, value),
                       "give more tokens, or shorter sequences");
    bend(key, value, least, fmt::format("{} has {} tokens", noun, least));
  }

  void fit_grid() {
    plan::PlanOptions& plan = config_.reorder.plan;
    int64_t width = 0;  // of the narrowest MLP
    for (const int64_t d_ff : spec_.layer_d_ff)
      if (d_ff > 0) width = width == 0 ? d_ff : std::min(width, d_ff);
    if (width == 0) return;
    if (given("reorder.grid")) {
      cap("reorder.grid", plan.grid, width, "the width of an MLP");
      return;
    }
    const int64_t finest = std::max<int64_t>(width / kLeastSteps, 1);
    if (plan.grid > 4 * finest)
      bend("reorder.grid", plan.grid, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(finest))),
           fmt::format("the MLP is {} wide", width));
  }

  void fit_levels() {
    plan::PlanOptions& plan = config_.reorder.plan;
    if (given("reorder.levels")) return;  // the plan refuses them and states the lowest possible level
    const double lowest = plan::lowest_level(spec_, plan);
    std::vector<double> kept;
    for (const double level : plan.levels)
      if (level >= lowest) kept.push_back(level);
    if (kept.size() == plan.levels.size()) return;
    log::info("reorder.levels: {} are left out: the narrowest sub-model is {:.3f} of the budget",
              fmt::join(plan.levels.begin(), plan.levels.end() - static_cast<int64_t>(kept.size()), ", "),
              lowest);
    plan.levels = kept;
    config_.sources["reorder.levels"] = fmt::format("fitted to the model: none below {:.3f}", lowest);
  }

  void fit_rank() {
    int64_t& rank = config_.reorder.repair.rank;
    const int64_t d_model = spec_.d_model;
    const std::string preset = fmt::format("preset {}", config_.preset);
    for (const auto& [key, value] : preset_named(config_.preset).values)
      if (key == "reorder.rank" && value == kEighthOfWidth && source_of("reorder.rank") == preset) {
        rank = std::max<int64_t>(d_model / 8, 1);
        config_.sources["reorder.rank"] = preset + ": an eighth of the model's width";
      }
    if (given("reorder.rank")) {
      cap("reorder.rank", rank, d_model, "the model's width");
    } else if (rank > d_model / 4) {
      bend("reorder.rank", rank, std::max<int64_t>(d_model / 8, 1),
           fmt::format("the model is {} wide", d_model));
    }
  }

  RunConfig& config_;
  const ModelSpec& spec_;
};

}  // namespace

void fit_to_model(RunConfig& config, const ModelSpec& spec) {
  Fitting(config, spec).fit();
}

}  // namespace elastify::pipeline
