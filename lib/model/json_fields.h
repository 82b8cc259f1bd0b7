#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace elastify {

/// Typed look-ups in a JSON object. A key with the value null counts as absent.
/// \throws Error  naming key, expected and found value
template <typename Json>
class JsonFields {
 public:
  explicit JsonFields(const Json& object) : object_(&object) {
    if (!object.is_object()) fail("expected a JSON object, got {}", shown(object));
  }

  bool has_key(const char* key) const { return object_->contains(key); }
  const Json* find(const char* key) const {
    const auto place = object_->find(key);
    return place == object_->end() || place->is_null() ? nullptr : &*place;
  }
  const Json& require(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) fail("{}: missing", key);
    return *value;
  }

  std::optional<int64_t> integer(const char* key) const {
    return find(key) ? std::optional(to_integer(key, *find(key))) : std::nullopt;
  }
  std::optional<double> number(const char* key) const {
    return find(key) ? std::optional(to_number(key, *find(key))) : std::nullopt;
  }
  std::optional<bool> boolean(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) fail("{}: expected true or false, got {}", key, shown(*value));
    return value->template get<bool>();
  }
  std::optional<std::string> string(const char* key) const {
    return find(key) ? std::optional(to_string(key, *find(key))) : std::nullopt;
  }

  int64_t require_integer(const char* key) const { return to_integer(key, require(key)); }
  double require_number(const char* key) const { return to_number(key, require(key)); }
  std::string require_string(const char* key) const { return to_string(key, require(key)); }
  const Json& require_array(const char* key) const {
    const Json& value = require(key);
    if (!value.is_array()) fail("{}: expected a list, got {}", key, shown(value));
    return value;
  }
  std::vector<int64_t> require_integers(const char* key) const {
    std::vector<int64_t> values;
    for (const Json& value : require_array(key)) values.push_back(to_integer(key, value));
    return values;
  }
  std::vector<std::string> require_strings(const char* key) const {
    std::vector<std::string> values;
    for (const Json& value : require_array(key)) values.push_back(to_string(key, value));
    return values;
  }

  static int64_t to_integer(std::string_view key, const Json& value) {
    const bool fits =
        value.is_number_integer() &&
        (!value.is_number_unsigned() ||
         value.template get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    if (!fits) fail("{}: expected an integer, got {}", key, shown(value));
    return value.template get<int64_t>();
  }
  static double to_number(std::string_view key, const Json& value) {
    if (!value.is_number()) fail("{}: expected a number, got {}", key, shown(value));
    return value.template get<double>();
  }
  static std::string to_string(std::string_view key, const Json& value) {
    if (!value.is_string()) fail("{}: expected a string, got {}", key, shown(value));
    return value.template get<std::string>();
  }
  /// A value for error messages: its JSON text, cut short; only the kind for lists and objects.
  static std::string shown(const Json& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return fmt::format("a list of {}", value.size());
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() <= 60 ? text : text.substr(0, 57) + "...";
  }

 private:
  const Json* object_;
};

/// \throws Error  with the place in the text
template <typename Json>
Json parse_json(const std::string& text) {
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    std::string_view what = error.what();
    if (const size_t end = what.find("] "); end != std::string_view::npos) what.remove_prefix(end + 2);
    fail("not valid JSON: {}", what);
  }
}

}  // namespace elastify
