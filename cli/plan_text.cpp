#include "cli/plan_text.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace elastify::cli {
namespace {

/// "2" or, where layers differ, "1-3".
std::string range_of(const ModelSpec& spec, const Widths& widths, SpaceKind kind) {
  int64_t low = INT64_MAX, high = 0;
  for (size_t i = 0; i < widths.size(); ++i) {
    if (spec.spaces[i].kind != kind) continue;
    low = std::min(low, widths[i]);
    high = std::max(high, widths[i]);
  }
  return low == high ? fmt::format("{}", low) : fmt::format("{}-{}", low, high);
}

}  // namespace

Report describe(const ElasticPlan& plan, const ModelSpec& spec) {
  Report report;
  report.json = {{"method", plan.method},
                 {"anchors", plan.anchors},
                 {"notes", plan.notes},
                 {"levels", nlohmann::ordered_json::array()}};
  report.text = fmt::format("{:>6} {:>10} {:>10} {:>12} {:>10} {:>12}\n", "level", "true ratio", "all ratio",
                            "parameters", "KV groups", "MLP width");
  for (const Level& level : plan.levels) {
    report.json["levels"].push_back({{"level", level.nominal},
                                     {"true_ratio", level.decoder_ratio},
                                     {"total_ratio", level.total_ratio},
                                     {"n_params", n_params(spec, level.widths)}});
    report.text += fmt::format("{:>6.3g} {:>10.4f} {:>10.4f} {:>12} {:>10} {:>12}\n", level.nominal,
                               level.decoder_ratio, level.total_ratio, n_params(spec, level.widths),
                               range_of(spec, level.widths, SpaceKind::kAttention),
                               range_of(spec, level.widths, SpaceKind::kMlp));
  }
  if (!plan.anchors.empty())
    report.text += fmt::format("anchor layers, most important first: {}\n", fmt::join(plan.anchors, ", "));
  for (const auto& note : plan.notes) report.text += "note: " + note + "\n";
  return report;
}

}  // namespace elastify::cli
