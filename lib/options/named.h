#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <concepts>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace elastify::options {

/// One value of an enum: its name in flags and files, and one line of help.
template <typename E>
struct Named {
  E value;
  std::string_view name, help;
};

/// An enum with a table of names: a function `names_of(E)` beside the enum returns it, one entry per value.
template <typename E>
concept NamedEnum = std::is_enum_v<E> && requires(E value) {
  { names_of(value) } -> std::convertible_to<std::span<const Named<E>>>;
};

/// The name of an enum's value.
template <NamedEnum E>
std::string_view name_in_table(E value) {
  for (const Named<E>& entry : names_of(value))
    if (entry.value == value) return entry.name;
  return "unknown";
}

/// The value with this name.
/// \param noun  the kind of thing, for the message: "metric"
/// \throws UsageError  that lists the known names
template <NamedEnum E>
E value_in_table(std::string_view noun, std::string_view name) {
  std::string known;
  for (const Named<E>& entry : names_of(E{})) {
    if (entry.name == name) return entry.value;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", entry.name);
  }
  throw UsageError(fmt::format("unknown {} '{}'; known are {}", noun, name, known));
}

}  // namespace elastify::options
