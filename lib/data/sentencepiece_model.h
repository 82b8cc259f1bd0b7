#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data/vocabulary.h"

namespace elastify {

/// How a sentencepiece model was trained; values are those of its file.
enum class SentencePieceAlgorithm : int64_t { kUnigram = 1, kBpe, kWord, kChar };

/// What a sentencepiece model file (a serialised ModelProto) says beyond the vocabulary.
struct SentencePieceModel {
  Vocabulary vocabulary;  ///< without the settings of tokenizer_config.json
  SentencePieceAlgorithm algorithm = SentencePieceAlgorithm::kUnigram;
  bool byte_fallback = false;
  bool remove_extra_whitespaces = true;
  bool treat_whitespace_as_suffix = false;
  bool escape_whitespaces = true;
  bool rewrites_characters = false;  ///< has a table of character replacements (NFKC and the like)

  /// True if encoding a text's lines one after the other (a space put before the first only) gives the ids of
  /// the whole: nothing is trimmed or rewritten, no piece reaches over a line end, and there are no unknown
  /// pieces, which sentencepiece joins.
  bool lines_are_independent() const;
};

/// \throws Error  naming the byte at which the file stops making sense
SentencePieceModel parse_sentencepiece_model(std::string_view bytes);

/// The bytes for libsentencepiece: the vocabulary's own model file with any tokens added to it since, or, for
/// a vocabulary that came without one (GGUF, llama2.c), a BPE model made from its tokens, scores and types.
/// Source: sentencepiece_model.proto (field numbers), https://github.com/google/sentencepiece
std::string to_sentencepiece_model(const Vocabulary& vocabulary);

}  // namespace elastify
