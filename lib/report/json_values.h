#pragma once

#include <nlohmann/json_fwd.hpp>

namespace elastify::report {

/// A number out of a report. Not-a-number where the value is no number: JSON writes that as null.
double number_of(const nlohmann::ordered_json& value);

}  // namespace elastify::report
