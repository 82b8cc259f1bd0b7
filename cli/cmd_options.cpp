#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "pipeline/presets.h"

namespace elastify::cli {
namespace {

using nlohmann::ordered_json;
using options::Option;

/// The value of each preset that sets this option.
ordered_json presets_of(const Option& option) {
  ordered_json values = ordered_json::object();
  for (const pipeline::Preset& preset : pipeline::presets())
    for (const auto& [key, value] : preset.values)
      if (key == option.key()) values[std::string(preset.name)] = value;
  return values;
}

/// The flag of an option, or the argument that sets it.
std::string spelling(const Option& option) {
  if (option.key() == "model") return "MODEL";
  const std::string flags = option.flags();
  return flags.substr(0, flags.find(','));
}

std::string in_a_cell(std::string text) {
  for (size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2))
    text.insert(at, "\\");
  return text;
}

/// A table per section, for docs/options.md.
std::string to_markdown(const options::Options& options) {
  std::string text =
      "# Options\n\nEvery option of every stage, as `elastify options` lists them. `--set KEY=VALUE` and "
      "YAML files take the keys, commands the flags.\n";
  const Option* before = nullptr;
  for (const Option& option : options.all()) {
    if (before == nullptr || before->section() != option.section())
      text += fmt::format(
          "\n## {}\n\n| flag | key | value | default | presets | meaning |\n|---|---|---|---|---|---|\n",
          option.section().empty() ? "The whole run" : fmt::format("`{}`", option.section()));
    before = &option;
    std::string of_presets;
    const ordered_json values = presets_of(option);
    for (const auto& [name, value] : values.items())
      of_presets += fmt::format("{}{}: {}", of_presets.empty() ? "" : ", ", name, value.get<std::string>());
    std::string meaning = option.help();
    for (const options::Choice& choice : option.choices())
      meaning += fmt::format("<br>`{}`: {}", choice.name, choice.help);
    const std::string range = option.range().text();
    text += fmt::format("| `{}` | `{}` | {} | {} | {} | {} |\n", spelling(option), option.key(),
                        in_a_cell(range.empty() ? option.type() : range), in_a_cell(option.value_text()),
                        of_presets, in_a_cell(meaning));
  }
  return text;
}

Report list_options(const Invocation& call, bool markdown) {
  Report report;
  report.json["options"] = ordered_json::array();
  for (const Option& option : call.options.all()) {
    ordered_json row{{"key", option.key()},       {"flag", spelling(option)},
                     {"type", option.type()},     {"range", option.range().text()},
                     {"default", option.value()}, {"presets", presets_of(option)},
                     {"help", option.help()},     {"choices", ordered_json::array()}};
    for (const options::Choice& choice : option.choices())
      row["choices"].push_back({{"name", choice.name}, {"help", choice.help}});
    report.json["options"].push_back(std::move(row));
    report.text += fmt::format("{:<24} {:<18} [{}]  {}\n", option.key(), option.type(), option.value_text(),
                               option.help());
  }
  if (markdown) report.text = to_markdown(call.options);
  return report;
}

}  // namespace

void add_options(CLI::App& command, Invocation& call) {
  auto markdown = std::make_shared<bool>(false);
  command.add_flag("--markdown", *markdown, "as the tables of docs/options.md");
  command.footer("Example: elastify options --json");
  command.callback(
      [markdown, &call] { call.action = [markdown, &call] { return list_options(call, *markdown); }; });
}

}  // namespace elastify::cli
