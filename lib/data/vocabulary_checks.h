#pragma once

#include <string_view>

#include "data/vocabulary.h"

// Shared by the readers of the single formats.

namespace elastify {

/// \throws Error  for a vocabulary that cannot be used: no tokens, lists of different lengths, text that is
///                not UTF-8, the same token twice, special ids or merges outside the vocabulary
void check_vocabulary(const Vocabulary& vocabulary);

/// Returns the byte of a byte piece of sentencepiece (10 for "<0x0A>"), or -1 for any other token.
int byte_piece_value(std::string_view token);

/// Replaces every `from` in `text` by `to`.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

/// Sentencepiece's sign for a space, U+2581.
inline constexpr std::string_view kSpaceSign = "\xE2\x96\x81";

// One reader per format; `load_vocabulary` chooses. \throws Error naming the file and the place in it
Vocabulary read_sentencepiece_file(const fs::path& file);
Vocabulary read_llama2c_tokenizer(const fs::path& file);
/// \param directory  with tokenizer.json or tokenizer.model, and the files that may lie beside them
Vocabulary read_hf_directory(const fs::path& directory);
/// True if `read_hf_directory` would find something to read.
bool has_hf_tokenizer(const fs::path& directory);

}  // namespace elastify
