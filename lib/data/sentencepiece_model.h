#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data/vocabulary.h"

namespace elastify {

/// The algorithm of a sentencepiece model. The values are those in its file.
enum class SentencePieceAlgorithm : int64_t { kUnigram = 1, kBpe, kWord, kChar };

/// The content of a sentencepiece model file (a serialised ModelProto).
struct SentencePieceModel {
  Vocabulary vocabulary;  ///< without the settings of tokenizer_config.json
  SentencePieceAlgorithm algorithm = SentencePieceAlgorithm::kUnigram;
  bool byte_fallback = false;
  bool remove_extra_whitespaces = true;
  bool treat_whitespace_as_suffix = false;
  bool escape_whitespaces = true;
  bool rewrites_characters = false;  ///< whether it has a table of character replacements (NFKC and the like)

  /// True if the lines of a text can be encoded one after the other, with a space put before the first line
  /// only, and give the ids of the whole text. This holds if nothing is trimmed or rewritten, no piece
  /// reaches over a line end, and there are no unknown pieces (sentencepiece joins those).
  bool lines_are_independent() const;
};

/// \throws Error  naming the byte from which on the file is not a valid model
SentencePieceModel parse_sentencepiece_model(std::string_view bytes);

/// Returns the model file for libsentencepiece. If the vocabulary has its own, that one is used, with any
/// tokens appended that were added later. Otherwise (GGUF, llama2.c) a BPE model is made from its tokens,
/// scores and types.
/// Source: sentencepiece_model.proto (field numbers), https://github.com/google/sentencepiece
std::string to_sentencepiece_model(const Vocabulary& vocabulary);

}  // namespace elastify
