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
  /// ("<|im_start|>") is encoded as text.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// The same for many texts at once (parallel, or one round trip to another process).
  virtual std::vector<std::vector<int32_t>> encode_all(const std::vector<std::string>& texts) const = 0;
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;

  virtual const Vocabulary& vocabulary() const = 0;
};

/// \throws Error  for a vocabulary of a kind without an encoder (WordPiece), naming it
std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

}  // namespace elastify
