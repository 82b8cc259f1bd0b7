#pragma once

#include <string>
#include <vector>

#include "base/file.h"

namespace elastify {

/// The files of a Hugging Face directory besides config.json and the weights.
struct Companions {
  std::vector<std::string> tokenizer;  ///< tokenizer*.json, tokenizer.model, vocab.json, ...; sorted
  std::vector<std::string> model;      ///< generation_config.json, model card, licence; sorted
  /// Whether `transformers` finds a tokenizer. special_tokens_map.json alone is none.
  bool has_tokenizer = false;
};

Companions find_companions(const fs::path& directory);

}  // namespace elastify
