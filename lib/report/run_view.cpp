#include "report/run_view.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "report/svg_chart.h"

namespace elastify::report {
namespace {

using nlohmann::ordered_json;

/// "level-050.gguf in model.gguf"; "-" for a level that has no file.
std::string file_text(const ordered_json& file) {
  if (file.is_null()) return "-";
  std::string name = file.at("name").get<std::string>();
  if (file.contains("packed")) name += " in " + file.at("packed").get<std::string>();
  if (file.contains("common")) name += " and " + file.at("common").get<std::string>();
  return name;
}

}  // namespace

std::string run_table(const ordered_json& report) {
  const bool baseline = report.at("levels").at(0).contains("perplexity_random_order");
  std::string text = fmt::format("{:>6} {:>10} {:>10} {:>12} {:>10} {:>11} {:>12} {:>9}  {}\n", "level",
                                 "true ratio", "all ratio", "parameters", "file MB", "perplexity",
                                 baseline ? "random order" : "", "tokens/s", "file");
  for (const auto& level : report.at("levels")) {
    const ordered_json file = level.at("files").empty() ? ordered_json() : level.at("files").at(0);
    text +=
        fmt::format("{:>6.2f} {:>10.4f} {:>10.4f} {:>12} {:>10} {:>11.2f} {:>12} {:>9.0f}  {}\n",
                    level.at("level").get<double>(), level.at("true_ratio").get<double>(),
                    level.at("total_ratio").get<double>(), level.at("n_params").get<int64_t>(),
                    file.is_null() ? "-" : fmt::format("{:.1f}", file.at("bytes").get<double>() / 1e6),
                    level.at("perplexity").get<double>(),
                    baseline ? fmt::format("{:.2f}", level.at("perplexity_random_order").get<double>()) : "",
                    level.at("tokens_per_second").get<double>(), file_text(file));
  }
  return text;
}

std::string run_chart(const ordered_json& report) {
  ChartSeries ordered{"reordered by " + report.at("metric").get<std::string>(), {}, {}};
  ChartSeries random{"random order", {}, {}};
  for (const auto& level : report.at("levels")) {
    if (level.at("files").empty()) continue;
    const double megabytes = level.at("files").at(0).at("bytes").get<double>() / 1e6;
    ordered.x.push_back(megabytes);
    ordered.y.push_back(level.at("perplexity"));
    if (!level.contains("perplexity_random_order")) continue;
    random.x.push_back(megabytes);
    random.y.push_back(level.at("perplexity_random_order"));
  }
  Chart picture{fs::path(report.at("model").get<std::string>()).stem().string(),
                "size of the level's file, MB",
                "perplexity on held-out text",
                true,
                {ordered}};
  if (!random.x.empty()) picture.series.push_back(random);
  return to_svg(picture);
}

}  // namespace elastify::report
