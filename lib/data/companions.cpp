#include "data/companions.h"

#include <algorithm>

namespace elastify {
namespace {

/// True for the files of a tokenizer in a Hugging Face directory.
bool belongs_to_tokenizer(const std::string& name) {
  constexpr std::string_view kNames[] = {"tokenizer.model",   "special_tokens_map.json",
                                         "added_tokens.json", "vocab.json",
                                         "merges.txt",        "chat_template.jinja"};
  return (name.starts_with("tokenizer") && name.ends_with(".json")) ||
         std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

bool belongs_to_model(const std::string& name) {
  return name == "generation_config.json" || name == "README.md" || name.starts_with("LICENSE") ||
         name.starts_with("NOTICE") || name.starts_with("USE_POLICY");
}

}  // namespace

Companions find_companions(const fs::path& directory) {
  Companions found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = entry.path().filename().string();
    if (belongs_to_tokenizer(name)) found.tokenizer.push_back(name);
    if (belongs_to_model(name)) found.model.push_back(name);
    found.has_tokenizer |= name == "tokenizer.json" || name == "tokenizer.model" || name == "vocab.json";
  }
  std::sort(found.tokenizer.begin(), found.tokenizer.end());
  std::sort(found.model.begin(), found.model.end());
  return found;
}

}  // namespace elastify
