#pragma once

#include <nlohmann/json.hpp>

#include <string>

namespace elastify::report {

/// The outcome of a command: `text` for people, `json` for machines. `ok` false: something that was checked
/// does not hold.
struct Report {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  std::string text;
  bool ok = true;
};

}  // namespace elastify::report
