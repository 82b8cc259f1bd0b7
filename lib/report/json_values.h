#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>

namespace elastify::report {

/// A number out of a report. Not-a-number where the value is no number: JSON writes that as null.
double number_of(const nlohmann::ordered_json& value);
/// The value of an option for people and tables: "taylor", "0.2", "a.txt+b.txt".
std::string text_of(const nlohmann::ordered_json& value);

}  // namespace elastify::report
