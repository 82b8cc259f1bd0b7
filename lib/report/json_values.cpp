#include "report/json_values.h"

#include <fmt/ranges.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace elastify::report {

double number_of(const nlohmann::ordered_json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::string text_of(const nlohmann::ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::vector<std::string> parts;
  for (const auto& item : value) parts.push_back(text_of(item));
  return fmt::format("{}", fmt::join(parts, "+"));
}

}  // namespace elastify::report
