#include <cstring>

#include "base/error.h"
#include "data/vocabulary_checks.h"

// llama2.c's tokenizer.bin, little-endian: i32 longest token in bytes, then for each token, to the end of the
// file,
//
//   f32 score | i32 length | bytes
//
// It is an export of a sentencepiece BPE model with byte fallback. The sign for a space has become a space,
// and <s> and </s> have line breaks around them.
// Source: https://github.com/karpathy/llama2.c, tokenizer.py (export)

namespace elastify {
namespace {

class TokenFile {
 public:
  explicit TokenFile(std::string_view bytes) : bytes_(bytes) {}
  bool at_end() const { return at_ == bytes_.size(); }

  template <typename T>
  T get(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    return value;
  }
  std::string_view take(size_t n, std::string_view what) {
    if (n > bytes_.size() - at_)
      fail("byte {}: {}: the file ends too early: {} bytes expected, {} left", at_, what, n,
           bytes_.size() - at_);
    at_ += n;
    return bytes_.substr(at_ - n, n);
  }
  size_t at() const { return at_; }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
};

Vocabulary parse(std::string_view bytes) {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kSentencePiece;
  vocabulary.pre = "default";
  TokenFile file(bytes);
  const auto longest = file.get<int32_t>("length of the longest token");
  if (longest < 1 || longest > 4096)
    fail("byte 0: expected the length of the longest token, got {}", longest);
  while (!file.at_end()) {
    const size_t i = vocabulary.tokens.size();
    const std::string what = fmt::format("token {}", i);
    const auto score = file.get<float>(what);
    const size_t place = file.at();
    const auto length = file.get<int32_t>(what);
    if (length < 1 || length > longest + 2)  // + 2: <s> is measured without its line breaks
      fail("byte {}: {}: expected a length from 1 to {}, got {}", place, what, longest, length);
    std::string token = replace_all(file.take(static_cast<size_t>(length), what), " ", kSpaceSign);
    TokenType type = byte_piece_value(token) >= 0 ? TokenType::kByte : TokenType::kNormal;
    if (i == 0) type = TokenType::kUnknown;
    if (i == 1 || i == 2) {
      type = TokenType::kControl;
      token.erase(0, token.find_first_not_of('\n'));
      token.erase(token.find_last_not_of('\n') + 1);
    }
    vocabulary.tokens.push_back(std::move(token));
    vocabulary.scores.push_back(score);
    vocabulary.types.push_back(type);
  }
  if (vocabulary.size() < 4) fail("{} tokens: not a llama2.c tokenizer", vocabulary.size());
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  vocabulary.add_bos = true;
  return vocabulary;
}

}  // namespace

Vocabulary read_llama2c_tokenizer(const fs::path& file) {
  return with_context(file.string(), [&] {
    Vocabulary vocabulary = parse(read_text(file));
    check_vocabulary(vocabulary);
    return vocabulary;
  });
}

}  // namespace elastify
