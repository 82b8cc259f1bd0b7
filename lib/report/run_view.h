#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>

// Views of the report of a run, report.json.

namespace elastify::report {

/// A table with a line per level: ratios, parameters, size of the file, perplexity, speed.
std::string run_table(const nlohmann::ordered_json& report);
/// An SVG chart of perplexity by the size of the levels' files, with the random order's curve if the report
/// has one.
std::string run_chart(const nlohmann::ordered_json& report);

}  // namespace elastify::report
