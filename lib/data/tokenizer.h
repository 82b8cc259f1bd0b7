#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/vocabulary.h"

namespace elastify {

/// Converts text to token ids and back. Implementations: sentencepiece (SPM vocabularies), byte-level BPE.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Encodes plain text, as stock llama.cpp does without special parsing: no begin-of-sequence token is
  /// added, text that looks like a control token ("<|im_start|>") is encoded as text, and user-defined tokens
  /// are recognised. Bytes that are not UTF-8 are encoded as bytes (BPE) or as U+FFFD (sentencepiece).
  /// May be called from several threads.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// Encodes many texts at once (in parallel, or in one round trip to another process).
  virtual std::vector<std::vector<int32_t>> encode_all(const std::vector<std::string>& texts) const = 0;
  /// Control tokens decode to nothing.
  /// \throws Error  for an id that is not in the vocabulary
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;

  virtual const Vocabulary& vocabulary() const = 0;
};

/// \throws Error  for a vocabulary without an encoder (WordPiece) or with an unknown `pre`, naming it, or if
///                the sentencepiece helper cannot be started (see sentencepiece_client.h)
std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

}  // namespace elastify
