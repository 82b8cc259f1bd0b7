#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace elastify::log {
namespace {

Level current = Level::kNormal;
std::string current_prefix = "elastify";

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = spdlog::stderr_color_mt("elastify");
    made->set_pattern("%v");
    return made;
  }();
  return *instance;
}

}  // namespace

void set_level(Level level) {
  current = level;
  logger().set_level(level == Level::kVerbose ? spdlog::level::debug : spdlog::level::info);
}
Level level() {
  return current;
}
void set_prefix(std::string prefix) {
  current_prefix = std::move(prefix);
}

void write_info(std::string_view message) {
  if (current != Level::kQuiet) logger().info("{}: {}", current_prefix, message);
}
void write_warning(std::string_view message) {
  logger().warn("{}: warning: {}", current_prefix, message);
}
void write_debug(std::string_view message) {
  logger().debug("{}: {}", current_prefix, message);
}

}  // namespace elastify::log
