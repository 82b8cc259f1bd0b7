#include "options/option.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

namespace elastify::options {
namespace {

using nlohmann::ordered_json;

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string dashed(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

}  // namespace

std::string Range::text() const {
  if (is_share) return "a share from 0 to 1";
  const bool bounded = std::isfinite(low), capped = std::isfinite(high);
  if (bounded && capped) return fmt::format("{} to {}", low, high);
  return bounded ? fmt::format("at least {}", low) : capped ? fmt::format("at most {}", high) : "";
}

Option& Option::at_least(double low) {
  range_->low = low;
  return *this;
}
Option& Option::between(double low, double high) {
  range_->low = low;
  range_->high = high;
  return *this;
}
Option& Option::share() {
  range_->is_share = true;
  return between(0, 1);
}
Option& Option::affects(Result results) {
  affects_ = results;
  return *this;
}
Option& Option::group(std::string_view title) {
  group_ = title;
  return *this;
}
Option& Option::alias(std::string_view name) {
  alias_ = name;
  return *this;
}

std::string Option::key() const {
  return section_.empty() ? name_ : section_ + "." + name_;
}

std::string Option::flags() const {
  const std::string name = dashed(name_);
  if (is_flag_) return fmt::format("--{0},!--no-{0}", name);
  return alias_.empty() ? "--" + name : fmt::format("--{},--{}", name, dashed(alias_));
}

std::string Option::value_text() const {
  const ordered_json json = value();
  if (json.is_null()) return "";
  if (!json.is_array()) return text_of(json);
  std::vector<std::string> items;
  for (const auto& item : json) items.push_back(text_of(item));
  return fmt::format("{}", fmt::join(items, ","));
}

void Option::set(const Given& given) {
  try {
    set_(given);
  } catch (const UsageError& error) {
    const bool is_own_flag = given.place.starts_with("--") && given.place.find('=') == std::string::npos;
    const std::string place =
        given.place.empty() || is_own_flag ? given.place : fmt::format("{}: {}", given.place, key());
    throw UsageError(fmt::format("{}: {}", place.empty() ? key() : place, error.what()), error.hint());
  }
}

Option& Options::append(std::string_view name, std::string_view help) {
  Option& option = all_.emplace_back();
  option.section_ = section_;
  option.name_ = name;
  option.help_ = help;
  option.affects_ = results_;
  return option;
}

void Options::require_in(const Range& range, double value, const Given& given) {
  if (value < range.low || value > range.high)
    throw UsageError(fmt::format("expected {}, got {}", range.text(), given.words.front()));
}

std::vector<std::string> Options::sections() const {
  std::vector<std::string> names;
  for (const Option& option : all_)
    if (!option.section().empty() && (names.empty() || names.back() != option.section()))
      names.push_back(option.section());
  return names;
}

Option* Options::find(std::string_view key) {
  const auto found =
      std::find_if(all_.begin(), all_.end(), [&](const Option& option) { return option.key() == key; });
  return found == all_.end() ? nullptr : &*found;
}

void Options::set(const std::string& key, const Given& given, Sources& sources, std::string_view source) {
  Option* option = find(key);
  if (option == nullptr) {
    std::vector<std::string> known;
    const size_t dot = key.find('.');
    const std::string section = dot == std::string::npos ? "" : key.substr(0, dot);
    for (const Option& other : all_)
      if (other.section() == section) known.push_back(other.name());
    if (section.empty())
      for (const std::string& name : sections()) known.push_back(name);
    const std::string place = given.place.empty() ? "" : given.place + ": ";
    throw UsageError(
        fmt::format("{}unknown key '{}'", place, key),
        known.empty() ? "" : nearest_of(known, dot == std::string::npos ? key : key.substr(dot + 1)));
  }
  option->set(given);
  sources[key] = source.empty() ? given.place : std::string(source);
}

ordered_json Options::json() const {
  ordered_json json = ordered_json::object();
  for (const Option& option : all_)
    (option.section().empty() ? json : json[option.section()])[option.name()] = option.value();
  return json;
}

ordered_json Options::json(Result results) const {
  ordered_json json = ordered_json::object();
  for (const Option& option : all_)
    if (overlap(option.results(), results))
      (option.section().empty() ? json : json[option.section()])[option.name()] = option.value();
  return json;
}

std::string text_of(const ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::vector<std::string> parts;
  for (const auto& item : value) parts.push_back(text_of(item));
  return fmt::format("{}", fmt::join(parts, "+"));
}

std::string nearest_of(const std::vector<std::string>& known, const std::string& name) {
  const auto nearest = std::min_element(known.begin(), known.end(), [&](const auto& a, const auto& b) {
    return edit_distance(a, name) < edit_distance(b, name);
  });
  return fmt::format("did you mean '{}'? known here: {}", *nearest, fmt::join(known, ", "));
}

}  // namespace elastify::options
