#include "report/sweep_view.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <utility>

namespace elastify::report {

TEST_CASE("sweep view: rows are compared with what the first would cost at their true ratios") {
  const auto point = [](const std::string& row, const std::vector<std::pair<double, double>>& levels) {
    nlohmann::ordered_json json{
        {"name", row}, {"options", {{kRows, row}}}, {"levels", nlohmann::ordered_json::array()}};
    for (const auto& [ratio, excess] : levels)
      json["levels"].push_back({{"level", ratio < 0.8 ? 0.5 : 0.9},
                                {"true_ratio", ratio},
                                {"excess_nll", excess},
                                {"perplexity", 2}});
    json["levels"].push_back({{"level", 1}, {"true_ratio", 1}, {"excess_nll", 0}, {"perplexity", 1}});
    return json;
  };
  const nlohmann::ordered_json report{
      {"axes", {{{"key", kRows}, {"values", {"first", "wider", "narrower"}}}}},
      {"tokens", 100},
      {"tasks", nlohmann::ordered_json::object()},
      {"points",
       {point("first", {{0.5, 2.0}, {0.9, 0.5}}), point("wider", {{0.7, 0.5}, {0.95, 0.125}}),
        point("narrower", {{0.3, 2.0}, {0.7, 2.0}})}}};
  const std::string table = sweep_table(report);
  CAPTURE(table);
  CHECK(table.find("first     2.000  1.00  0.500  1.00\n") != std::string::npos);
  // Half of sqrt(2.0 * 0.5), and of what a twentieth left out costs where a tenth costs 0.5.
  CHECK(table.find("wider     0.500  0.50  0.125  0.50\n") != std::string::npos);
  // The line goes on below: half of 4.0.
  CHECK(table.find("narrower  2.000  0.50  2.000  2.00\n") != std::string::npos);
}

}  // namespace elastify::report
