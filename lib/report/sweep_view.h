#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

// Views of the report of a sweep, sweep.json, and the names of its points.

namespace elastify::report {

/// One option that a sweep varies, or its rows: named sets of options.
struct SweepAxis {
  std::string key;                  ///< as in "reorder.metric"; kRows for rows
  std::vector<std::string> values;  ///< as options::text_of() writes them; the names of rows
};
inline constexpr const char* kRows = "row";

/// The name of the point with these values, one per axis: "taylor, uniform, seed 1". Values that are names
/// stand alone, and numbers follow their option. Axes with one value are left out.
std::string point_name(const std::vector<std::string>& values, const std::vector<SweepAxis>& axes);

/// A line per point and level. RFC 4180.
std::string sweep_csv(const nlohmann::ordered_json& report);
/// An SVG chart with a line per point. The first axis that varies has the colours, and the others together
/// have the dashes.
std::string sweep_chart(const nlohmann::ordered_json& report);
/// A table of perplexity by point and level. A sweep with rows has a second table: the excess loss of each
/// row over the full model, as a share of the first row's at the same true ratio.
std::string sweep_table(const nlohmann::ordered_json& report);

}  // namespace elastify::report
