#include "data/sentencepiece_tokenizer.h"

#include <utility>

#include "base/error.h"
#include "data/sentencepiece_model.h"

namespace elastify {

SentencePieceTokenizer::SentencePieceTokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  const std::string model = to_sentencepiece_model(vocabulary_);
  client_ =
      std::make_unique<SentencePieceClient>(model, parse_sentencepiece_model(model).lines_are_independent());
  if (client_->n_pieces() != vocabulary_.size())
    fail("sentencepiece: expected {} pieces, got {}", vocabulary_.size(), client_->n_pieces());
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  return std::move(client_->encode({text}).front());
}

std::vector<std::vector<int32_t>> SentencePieceTokenizer::encode_all(
    const std::vector<std::string>& texts) const {
  return client_->encode({texts.begin(), texts.end()});
}

std::string SentencePieceTokenizer::decode(const std::vector<int32_t>& ids) const {
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocabulary_.size())
      fail("token id {} is not in the vocabulary of {} tokens", id, vocabulary_.size());
  }
  return client_->decode(ids);
}

}  // namespace elastify
