#include "model/compensation.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"

namespace elastify {
namespace {

/// The parts, in the order in which a name lists them.
constexpr std::pair<Compensation, std::string_view> kParts[] = {{Compensation::kAdapter, "adapter"},
                                                                {Compensation::kBaked, "baked"},
                                                                {Compensation::kBias, "bias"},
                                                                {Compensation::kNorm, "norm"}};
constexpr unsigned kAllParts = 16;

bool can_be_fitted(Compensation compensation) {
  return !has(compensation, Compensation::kAdapter) || !has(compensation, Compensation::kBaked);
}

/// The parts that a name lists, and the first unknown one.
struct Parsed {
  Compensation parts = Compensation::kNone;
  std::optional<std::string_view> unknown = {};
};

Parsed parse(std::string_view name) {
  Parsed parsed;
  for (std::string_view rest = name; name != "none";) {
    const size_t end = std::min(rest.find('+'), rest.size());
    const auto* part = std::find_if(std::begin(kParts), std::end(kParts),
                                    [&](const auto& each) { return each.second == rest.substr(0, end); });
    if (part == std::end(kParts)) {
      parsed.unknown = rest.substr(0, end);
      break;
    }
    parsed.parts |= part->first;
    if (end == rest.size()) break;
    rest.remove_prefix(end + 1);
  }
  return parsed;
}

}  // namespace

std::string name_of(Compensation compensation) {
  std::string name;
  for (const auto& [part, word] : kParts)
    if (has(compensation, part)) {
      if (!name.empty()) name += '+';
      name += word;
    }
  return name.empty() ? "none" : name;
}

Compensation parts_named(std::string_view name) {
  if (name.empty()) return Compensation::kNone;
  const Parsed parsed = parse(name);
  if (parsed.unknown) {
    std::vector<std::string_view> known;
    for (const auto& each : kParts) known.push_back(each.second);
    fail("unknown compensation '{}'; known are {}", *parsed.unknown, fmt::join(known, ", "));
  }
  return parsed.parts;
}

std::vector<std::string> compensation_names() {
  std::vector<std::string> names;
  for (unsigned bits = 0; bits < kAllParts; ++bits)
    if (const auto each = static_cast<Compensation>(bits); can_be_fitted(each))
      names.push_back(name_of(each));
  return names;
}

Compensation compensation_named(std::string_view name) {
  const Parsed parsed = parse(name);
  if (parsed.unknown || !can_be_fitted(parsed.parts))
    throw UsageError(
        fmt::format("unknown compensation '{}'; known are {}", name, fmt::join(compensation_names(), ", ")));
  return parsed.parts;
}

}  // namespace elastify
