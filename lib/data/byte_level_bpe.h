#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/pre_tokenizer.h"
#include "data/tokenizer.h"

namespace elastify {

/// Byte-level byte-pair encoding. Text is cut into words (PreTokenizer). A word starts as its bytes; the
/// neighbours with the best merge are joined until no merge applies.
///
/// Bytes without a token of their own are left out, as llama.cpp and Hugging Face do. (Some vocabularies lack
/// bytes that rarely occur.)
/// Source: Radford et al. 2019 (GPT-2), section 2.2; https://github.com/openai/gpt-2 (encoder.py)
class ByteLevelBpe : public Tokenizer {
 public:
  /// \throws Error  if `vocabulary.pre` is unknown or a merge is of tokens that are not in the vocabulary
  explicit ByteLevelBpe(Vocabulary vocabulary);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<std::vector<int32_t>> encode_all(const std::vector<std::string>& texts) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank = -1;
    int32_t id = -1;
  };
  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  /// Cache of words and their ids; one per thread.
  using Words = std::unordered_map<std::string, std::vector<int32_t>, TextHash, std::equal_to<>>;

  void encode_text(std::string_view text, Words& words, std::vector<int32_t>& ids) const;
  void encode_plain(std::string_view text, Words& words, std::vector<int32_t>& ids) const;
  void encode_valid(std::string_view text, Words& words, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, Words& words, std::vector<int32_t>& ids) const;
  std::vector<int32_t> merge(std::string_view word) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  Vocabulary vocabulary_;
  PreTokenizer pre_tokenizer_;
  std::unordered_map<std::string_view, int32_t> ids_;   ///< views into vocabulary_
  std::unordered_map<uint64_t, Merge> merges_;          ///< by left id << 32 | right id
  std::array<int32_t, 256> byte_ids_;                   ///< -1: none
  std::array<std::vector<int32_t>, 256> user_defined_;  ///< by first byte, longest first
};

/// GPT-2's notation of bytes as printable characters: 0x20 is U+0120.
std::string to_byte_notation(std::string_view bytes);
/// The inverse of to_byte_notation(). Characters outside the notation stand for themselves.
std::string from_byte_notation(std::string_view token);

}  // namespace elastify
