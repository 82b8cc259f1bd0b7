#pragma once

#include "data/sentencepiece_client.h"
#include "data/tokenizer.h"

namespace elastify {

/// Encodes with libsentencepiece, through SentencePieceClient.
class SentencePieceTokenizer : public Tokenizer {
 public:
  /// \throws Error  if the helper cannot be started or sentencepiece rejects the vocabulary
  explicit SentencePieceTokenizer(Vocabulary vocabulary);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<std::vector<int32_t>> encode_all(const std::vector<std::string>& texts) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
  std::unique_ptr<SentencePieceClient> client_;
};

}  // namespace elastify
