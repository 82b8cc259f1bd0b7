#include "data/tokenizer.h"

#include <utility>

#include "base/error.h"
#include "data/byte_level_bpe.h"
#include "data/sentencepiece_tokenizer.h"
#include "data/vocabulary_checks.h"

namespace elastify {

std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary) {
  check_vocabulary(vocabulary);
  switch (vocabulary.kind) {
    case TokenizerKind::kSentencePiece:
      return std::make_unique<SentencePieceTokenizer>(std::move(vocabulary));
    case TokenizerKind::kByteLevelBpe:
      return std::make_unique<ByteLevelBpe>(std::move(vocabulary));
    case TokenizerKind::kWordPiece:
      break;
  }
  throw Error("no encoder for WordPiece vocabularies", "elastify encodes sentencepiece and byte-level BPE");
}

}  // namespace elastify
