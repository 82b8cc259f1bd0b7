#include "cli/options.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>

#include "pipeline/presets.h"

namespace elastify::cli {
namespace {

using options::Given;
using options::Option;

constexpr const char* kCommon = "common";

/// Empty if the preset does not set the option.
std::string value_in_preset(const std::string& preset, const std::string& key) {
  for (const auto& [known, value] : pipeline::preset_named(preset).values)
    if (known == key) return std::string(value);
  return "";
}

std::string help_of(const Option& option) {
  std::string text = option.help();
  if (const std::string range = option.range().text(); !range.empty()) text += fmt::format(" ({})", range);
  const std::string preset = value_in_preset(pipeline::RunConfig().preset, option.key());
  if (!preset.empty())
    text += fmt::format(" [{} by preset, else {}]", preset, option.value_text());
  else if (const std::string value = option.value_text(); !value.empty() && value != "0")
    text += fmt::format(" [{}]", value);
  for (const options::Choice& choice : option.choices())
    text += fmt::format("\n    {:<15} {}", choice.name, choice.help);
  return text;
}

void add_flag(CLI::App& command, Invocation& call, const Option& option) {
  const std::string key = option.key(), flags = option.flags();
  const std::string place = flags.substr(0, flags.find(','));
  const auto set = [&call, key, place](std::vector<std::string> words) {
    call.options.set(key,
                     words.size() == 1 ? Given::text(std::move(words.front()), place)
                                       : Given::list(std::move(words), place),
                     call.config.sources);
  };
  CLI::Option* flag = nullptr;
  if (option.is_flag())
    flag = command.add_flag_function(
        flags, [set](int64_t count) { set({count > 0 ? "true" : "false"}); }, help_of(option));
  else if (option.takes_list())
    flag = command.add_option_function<std::vector<std::string>>(flags, set, help_of(option));
  else
    flag = command.add_option_function<std::string>(
        flags, [set](const std::string& word) { set({word}); }, help_of(option));
  if (!option.is_flag()) flag->type_name(option.type());
  if (!option.heading().empty()) flag->group(option.heading());
}

}  // namespace

void add_flags(CLI::App& command, Invocation& call,
               const std::function<bool(const options::Option&)>& wanted) {
  for (const Option& option : call.options.all())
    if (wanted(option)) add_flag(command, call, option);
}

void add_section(CLI::App& command, Invocation& call, std::string_view section,
                 const std::vector<std::string>& but) {
  add_flags(command, call, [&](const Option& option) {
    return option.section() == section && std::find(but.begin(), but.end(), option.key()) == but.end();
  });
}

void add_common(CLI::App& command, Invocation& call) {
  command.add_flag("--json", call.json, "print one JSON object on standard output")->group(kCommon);
  command.add_flag("--force", call.force, "replace what exists")->group(kCommon);
  command.add_flag("-q,--quiet", call.quiet, "warnings and errors only")->group(kCommon);
  command.add_flag("-v,--verbose", call.verbose, "say more")->group(kCommon);
  add_flags(command, call, [](const Option& option) { return option.heading() == kCommon; });
}

std::string level_error(const std::string& text) {
  double level = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), level);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  return is_number && level > 0 && level <= 1
             ? ""
             : fmt::format("expected a level above 0, up to 1, got {}", text);
}

std::vector<std::string> overrides_of(const Invocation& call) {
  std::vector<std::string> overrides;
  for (const Option& option : call.options.all())
    if (option.section().empty() && call.given(option.key()))
      overrides.push_back(fmt::format("{}={}", option.name(), option.value().dump()));
  return overrides;
}

}  // namespace elastify::cli
