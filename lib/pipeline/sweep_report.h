#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "pipeline/config.h"

namespace elastify::pipeline {

// What a sweep's report, as `sweep` returns it, is told as.

/// "taylor, uniform, seed 1": a name says what it is, a number does not.
std::string point_name(const SweepPoint& point, const std::vector<GridAxis>& grid);
/// JSON writes what is not a number as null.
double number_of(const nlohmann::ordered_json& value);

/// A line per point and level. RFC 4180.
std::string sweep_csv(const nlohmann::ordered_json& report);
/// An SVG with a line per point: its colour is the value of the first axis that varies, its dashes are the
/// others'.
std::string sweep_chart(const nlohmann::ordered_json& report, const std::vector<GridAxis>& grid);
/// Perplexity by point and level, as a table for people; of rows, what each costs over the full model
/// besides.
std::string sweep_table(const nlohmann::ordered_json& report);

}  // namespace elastify::pipeline
