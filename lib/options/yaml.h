#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "options/option.h"

namespace elastify::options {

struct YamlEntry;

/// A node of a YAML file, with the place where it was written.
struct YamlNode {
  Given::Kind kind = Given::Kind::kNothing;
  std::string text;                ///< kText
  std::vector<YamlNode> items;     ///< kList
  std::vector<YamlEntry> entries;  ///< kSection, in the order of the file
  std::string place;               ///< "run.yaml:5", or "--set seed=1"

  /// Null if there is no such entry, or the node is no section.
  const YamlNode* find(std::string_view key) const;
  /// Returns the node as the value of an option. A section gives its kind without its entries.
  Given given() const;
};
struct YamlEntry {
  std::string key, place;  ///< where the key was written
  YamlNode value;
};

/// Reads a file and applies overrides of the form "key=value" or "section.key=value".
/// \throws UsageError  naming file and line: syntax, a key that stands twice; naming the override
YamlNode load_yaml(const fs::path& file, const std::vector<std::string>& overrides = {});

/// Sets the options that the tree states, and notes their sources.
/// \param elsewhere  keys of the top level that somebody else reads
/// \throws UsageError  as Options::set(); for a section that is none
void set_from_yaml(Options& options, const YamlNode& root, Sources& sources,
                   const std::vector<std::string>& elsewhere = {});

/// All options as YAML, each with its source in a comment: what load_yaml() reads back to the same values.
std::string to_yaml(const Options& options, const Sources& sources);

}  // namespace elastify::options
