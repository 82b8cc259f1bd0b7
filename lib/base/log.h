#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace elastify::log {

enum class Level { kQuiet, kNormal, kVerbose };

/// Sets which messages reach stderr: kQuiet only warnings and errors, kNormal also progress and notes,
/// kVerbose all.
void set_level(Level level);
Level level();

/// Sets the verb that every line starts with, as in `reorder: ...`.
void set_prefix(std::string prefix);

void write_info(std::string_view message);
void write_warning(std::string_view message);
void write_debug(std::string_view message);

template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write_info(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  write_warning(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write_debug(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace elastify::log
