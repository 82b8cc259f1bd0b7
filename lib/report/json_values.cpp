#include "report/json_values.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace elastify::report {

double number_of(const nlohmann::ordered_json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace elastify::report
