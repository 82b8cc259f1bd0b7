#include "options/yaml.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "base/error.h"

namespace elastify::options {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 20;

/// \param name  of the file; empty: every node has the place of its parent, which is an override
/// \param path  key of the node; empty: the root
YamlNode converted(const YAML::Node& node, const std::string& name, const std::string& place,
                   const std::string& path = "") {
  const auto place_of = [&](const YAML::Node& of) {
    return name.empty() || of.Mark().is_null() ? place : fmt::format("{}:{}", name, of.Mark().line + 1);
  };
  YamlNode result;
  result.place = place_of(node);
  if (node.IsScalar()) {
    result.kind = Given::Kind::kText;
    result.text = node.Scalar();
  } else if (node.IsSequence()) {
    result.kind = Given::Kind::kList;
    for (const auto& item : node) result.items.push_back(converted(item, name, result.place, path));
  } else if (node.IsMap()) {
    result.kind = Given::Kind::kSection;
    for (const auto& entry : node) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      const std::string where = place_of(entry.first), full = path.empty() ? key : path + "." + key;
      if (result.find(key) != nullptr) throw UsageError(fmt::format("{}: {}: is given twice", where, full));
      result.entries.push_back({key, where, converted(entry.second, name, where, full)});
    }
  }
  return result;
}

YAML::Node parsed(const std::string& text, const std::string& place) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw UsageError(place.empty() ? error.msg : fmt::format("{}: {}", place, error.msg));
  }
}

YamlNode& entry_of(YamlNode& node, const std::string& key, const std::string& place) {
  const auto found = std::find_if(node.entries.begin(), node.entries.end(),
                                  [&](const YamlEntry& entry) { return entry.key == key; });
  if (found != node.entries.end()) {
    found->place = place;
    return found->value;
  }
  return node.entries.emplace_back(YamlEntry{key, place, {}}).value;
}

void apply_override(YamlNode& root, const std::string& text) {
  const std::string place = "--set " + text;
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw UsageError(fmt::format("{}: expected section.key=value", place));
  const YamlNode value = converted(parsed(text.substr(equals + 1), place), "", place);
  const std::string key = text.substr(0, equals);
  const size_t dot = key.find('.');
  root.kind = Given::Kind::kSection;
  if (dot == std::string::npos) {
    entry_of(root, key, place) = value;
    return;
  }
  YamlNode& section = entry_of(root, key.substr(0, dot), place);
  if (section.kind != Given::Kind::kNothing && section.kind != Given::Kind::kSection)
    throw UsageError(fmt::format("{}: '{}' is not a section", place, key.substr(0, dot)));
  section.kind = Given::Kind::kSection;
  entry_of(section, key.substr(dot + 1), place) = value;
}

/// A scalar that YAML reads back as the same text.
std::string scalar_text(const nlohmann::ordered_json& value) {
  return value.dump();  // JSON is YAML
}

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  const auto found =
      std::find_if(entries.begin(), entries.end(), [&](const YamlEntry& entry) { return entry.key == key; });
  return found == entries.end() ? nullptr : &found->value;
}

Given YamlNode::given() const {
  Given given{kind, {}, place};
  if (kind == Given::Kind::kText) given.words = {text};
  for (const YamlNode& item : items) {
    if (item.kind != Given::Kind::kText)
      throw UsageError(fmt::format("{}: expected a list of single values, got {} in it", item.place,
                                   item.given().described()));
    given.words.push_back(item.text);
  }
  return given;
}

YamlNode load_yaml(const fs::path& file, const std::vector<std::string>& overrides) {
  const std::string text = read_text(file, kMostBytes);
  YamlNode root;
  try {
    root = converted(YAML::Load(text), file.string(), file.string());
  } catch (const YAML::Exception& error) {
    throw UsageError(fmt::format("{}:{}: {}", file.string(), error.mark.line + 1, error.msg));
  }
  if (root.kind != Given::Kind::kNothing && root.kind != Given::Kind::kSection)
    throw UsageError(
        fmt::format("{}: expected a section with keys, got {}", root.place, root.given().described()));
  for (const std::string& override : overrides) apply_override(root, override);
  return root;
}

void set_from_yaml(Options& options, const YamlNode& root, Sources& sources,
                   const std::vector<std::string>& elsewhere) {
  const std::vector<std::string> sections = options.sections();
  const auto is_in = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const auto set = [&](const std::string& key, const YamlEntry& entry) {
    Given given = entry.value.given();
    if (options.find(key) == nullptr) given.place = entry.place;
    options.set(key, given, sources);
  };
  for (const YamlEntry& entry : root.entries) {
    if (is_in(elsewhere, entry.key)) continue;
    if (!is_in(sections, entry.key)) {
      set(entry.key, entry);
      continue;
    }
    if (entry.value.kind == Given::Kind::kNothing) continue;
    if (entry.value.kind != Given::Kind::kSection)
      throw UsageError(fmt::format("{}: {}: expected a section with keys, got {}", entry.value.place,
                                   entry.key, entry.value.given().described()));
    for (const YamlEntry& inner : entry.value.entries) set(entry.key + "." + inner.key, inner);
  }
}

std::string to_yaml(const Options& options, const Sources& sources) {
  std::string text, section;
  for (const Option& option : options.all()) {
    if (option.value().is_null()) continue;
    if (option.section() != section) text += fmt::format("\n{}:\n", option.section());
    section = option.section();
    const auto source = sources.find(option.key());
    const std::string line =
        fmt::format("{}{}: {}", section.empty() ? "" : "  ", option.name(), scalar_text(option.value()));
    text += fmt::format("{:<48}  # {}\n", line, source == sources.end() ? "default" : source->second);
  }
  return text;
}

}  // namespace elastify::options
