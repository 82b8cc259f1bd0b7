#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/vocabulary.h"

namespace elastify {

/// Text to token ids and back. Implementations: sentencepiece (SPM vocabularies), byte-level BPE.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of plain text: no begin-of-sequence token is added, and text that looks like a control token
  /// ("<|im_start|>") is encoded as text; user-defined tokens are found in text. Same as stock llama.cpp
  /// without special parsing. May be called from several threads.
  /// Bytes that are not UTF-8: as bytes (BPE), as U+FFFD (sentencepiece).
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// The same for many texts at once (parallel, or one round trip to another process).
  virtual std::vector<std::vector<int32_t>> encode_all(const std::vector<std::string>& texts) const = 0;
  /// Control tokens stand for no text.
  /// \throws Error  for an id that is not in the vocabulary
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;

  virtual const Vocabulary& vocabulary() const = 0;
};

/// \throws Error  for a vocabulary of a kind without an encoder (WordPiece) or an unknown `pre`, naming it,
/// or if
///                the sentencepiece helper cannot be started (see sentencepiece_client.h)
std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

}  // namespace elastify
