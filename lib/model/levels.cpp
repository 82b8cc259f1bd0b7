#include "model/levels.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "base/error.h"

namespace elastify {
namespace {

constexpr size_t kMaxLevels = 100;

double rounded(double level) {
  return std::round(level * kLevelRounding) / kLevelRounding;
}

double parse_number(std::string_view text, std::string_view item) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    throw UsageError(fmt::format("levels: cannot read '{}'", item),
                     "expected numbers like 0.9,0.7,0.5 or a range low:high:step like 0.2:1.0:0.1");
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

void append_range(std::vector<double>& levels, const std::vector<double>& range, std::string_view item) {
  const double low = range[0], high = range[1], step = range[2];
  if (!(step > 0) || high < low || (high - low) / step > kMaxLevels)
    throw UsageError(fmt::format("levels: '{}' is not a range", item),
                     fmt::format("low:high:step, rising, with at most {} levels: 0.2:1.0:0.1", kMaxLevels));
  const auto n_steps = static_cast<int64_t>(std::floor((high - low) / step + 1e-6));
  for (int64_t i = 0; i <= n_steps; ++i) levels.push_back(rounded(low + static_cast<double>(i) * step));
}

}  // namespace

std::vector<double> normalised_levels(std::vector<double> levels) {
  for (double& level : levels) {
    if (!(rounded(level) > 0 && level <= 1))
      throw UsageError(
          fmt::format("levels: {} is not a share of the model; expected more than 0, up to 1", level),
          level > 1 && level <= 100 ? fmt::format("{} percent is {}", level, level / 100) : "");
    level = rounded(level);
  }
  levels.push_back(1);
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  if (levels.size() > kMaxLevels)
    throw UsageError(fmt::format("levels: {} of them, more than {}", levels.size(), kMaxLevels));
  return levels;
}

std::vector<double> parse_levels(std::string_view text) {
  std::vector<double> levels;
  for (const std::string_view item : split(text, ',')) {
    std::vector<double> numbers;
    for (const std::string_view part : split(item, ':')) numbers.push_back(parse_number(part, item));
    if (numbers.size() == 1) {
      levels.push_back(numbers[0]);
    } else if (numbers.size() == 3) {
      append_range(levels, numbers, item);
    } else {
      throw UsageError(fmt::format("levels: '{}' is not a range", item), "low:high:step, as in 0.2:1.0:0.1");
    }
  }
  return normalised_levels(std::move(levels));
}

options::Codec<std::vector<double>> levels_codec() {
  return {"LIST|FROM:TO:STEP",
          [](const options::Given& given) {
            if (given.kind == options::Given::Kind::kList && given.words.empty())
              return std::vector<double>();
            return parse_levels(options::joined(given, "levels: a list, or a range such as 0.2:1.0:0.1"));
          },
          [](const std::vector<double>& levels) { return nlohmann::ordered_json(levels); }};
}

}  // namespace elastify
