#include "data/byte_level_bpe.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <queue>
#include <utility>

#include "base/error.h"
#include "data/utf8.h"

namespace elastify {
namespace {

/// Longer words are too rare to be worth caching.
constexpr size_t kMaxRememberedBytes = 64;
constexpr size_t kMaxRememberedWords = size_t{1} << 18;
/// All characters of the notation are below this.
constexpr uint32_t kNotationEnd = 0x144;

struct ByteNotation {
  std::array<std::string, 256> character;
  std::array<int, kNotationEnd> byte;

  ByteNotation() {
    byte.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const uint32_t code = printable ? b : next++;
      byte[code] = static_cast<int>(b);
      if (code >= 0x80) character[b].push_back(static_cast<char>(0xC0 | code >> 6));
      character[b].push_back(static_cast<char>(code < 0x80 ? code : 0x80 | (code & 0x3F)));
    }
  }
};

const ByteNotation& notation() {
  static const ByteNotation table;
  return table;
}

std::string to_nfc(std::string_view text) {
  utf8proc_uint8_t* composed = nullptr;
  const auto n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                              static_cast<utf8proc_ssize_t>(text.size()), &composed,
                              static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (n < 0) fail("cannot bring text to NFC: {}", utf8proc_errmsg(n));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
  return {reinterpret_cast<const char*>(composed), static_cast<size_t>(n)};
}

}  // namespace

std::string to_byte_notation(std::string_view bytes) {
  std::string token;
  token.reserve(bytes.size() * 2);
  for (const char byte : bytes) token += notation().character[static_cast<uint8_t>(byte)];
  return token;
}

std::string from_byte_notation(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size(); ++i) {
    const auto first = static_cast<uint8_t>(token[i]);
    uint32_t code = first;
    bool two = false;
    if (first >= 0xC2 && first <= 0xC5 && i + 1 < token.size()) {
      code = (first & 0x1Fu) << 6 | (static_cast<uint8_t>(token[i + 1]) & 0x3Fu);
      two = true;
    } else if (first >= 0x80) {
      code = kNotationEnd;
    }
    if (code < kNotationEnd && notation().byte[code] >= 0) {
      bytes.push_back(static_cast<char>(notation().byte[code]));
      if (two) ++i;
    } else {
      bytes.push_back(token[i]);
    }
  }
  return bytes;
}

ByteLevelBpe::ByteLevelBpe(Vocabulary vocabulary)
    : vocabulary_(std::move(vocabulary)), pre_tokenizer_(pre_tokenizer_patterns(vocabulary_.pre)) {
  ids_.reserve(vocabulary_.tokens.size());
  for (size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const std::string& token = vocabulary_.tokens[i];
    ids_.emplace(token, id);
    if (vocabulary_.types[i] == TokenType::kUserDefined && !token.empty())
      user_defined_[static_cast<uint8_t>(token[0])].push_back(id);
  }
  for (auto& ids : user_defined_) {
    std::stable_sort(ids.begin(), ids.end(), [this](int32_t a, int32_t b) {
      return vocabulary_.tokens[static_cast<size_t>(a)].size() >
             vocabulary_.tokens[static_cast<size_t>(b)].size();
    });
  }
  const auto id_of = [this](std::string_view token) {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  };
  for (size_t b = 0; b < byte_ids_.size(); ++b) byte_ids_[b] = id_of(notation().character[b]);

  merges_.reserve(vocabulary_.merges.size());
  std::string joined;
  for (size_t i = 0; i < vocabulary_.merges.size(); ++i) {
    const std::string_view text = vocabulary_.merges[i];
    const size_t space = text.find(' ', 1);
    if (space == std::string_view::npos)
      fail("merge {}: expected two tokens with a space between, got {:?}", i, text);
    joined = text.substr(0, space);
    joined += text.substr(space + 1);
    const int32_t left = id_of(text.substr(0, space));
    const int32_t right = id_of(text.substr(space + 1));
    const int32_t id = id_of(joined);
    if (left < 0 || right < 0 || id < 0)
      fail("merge {}: {:?} has parts that are not in the vocabulary", i, text);
    merges_.emplace(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right),
                    Merge{static_cast<int32_t>(i), id});
  }
}

const ByteLevelBpe::Merge* ByteLevelBpe::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::vector<int32_t> ByteLevelBpe::merge(std::string_view word) const {
  // Symbols form a doubly linked list in an array. A symbol that was joined to its left neighbour has id -1.
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, left, left_id, right_id, id;
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (const char byte : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id < 0) continue;
    const auto here = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, here - 1, here + 1});
  }
  if (symbols.empty()) return {};
  symbols.back().next = -1;
  const auto at = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };

  std::priority_queue<Candidate> candidates;
  const auto offer = [&](int32_t left) {
    if (left < 0 || at(left).next < 0) return;
    const int32_t right_id = at(at(left).next).id;
    if (const Merge* found = find_merge(at(left).id, right_id))
      candidates.push({found->rank, left, at(left).id, right_id, found->id});
  };
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) offer(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = at(best.left);
    // Either side may have been merged with another symbol since.
    if (left.id != best.left_id || left.next < 0 || at(left.next).id != best.right_id) continue;
    Symbol& right = at(left.next);
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(left.next).previous = best.left;
    offer(left.previous);
    offer(best.left);
  }
  std::vector<int32_t> ids;
  for (int32_t i = 0; i >= 0; i = at(i).next) ids.push_back(at(i).id);
  return ids;
}

void ByteLevelBpe::encode_word(std::string_view word, Words& words, std::vector<int32_t>& ids) const {
  if (const auto found = words.find(word); found != words.end()) {
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return;
  }
  std::vector<int32_t> merged;
  if (vocabulary_.ignore_merges) {
    const auto whole = ids_.find(to_byte_notation(word));
    if (whole != ids_.end() && vocabulary_.types[static_cast<size_t>(whole->second)] == TokenType::kNormal)
      merged = {whole->second};
  }
  if (merged.empty()) merged = merge(word);
  ids.insert(ids.end(), merged.begin(), merged.end());
  if (word.size() <= kMaxRememberedBytes && words.size() < kMaxRememberedWords)
    words.emplace(word, std::move(merged));
}

void ByteLevelBpe::encode_valid(std::string_view text, Words& words, std::vector<int32_t>& ids) const {
  if (!vocabulary_.nfc) {
    for (const std::string_view word : pre_tokenizer_.split(text)) encode_word(word, words, ids);
    return;
  }
  const std::string composed = to_nfc(text);
  for (const std::string_view word : pre_tokenizer_.split(composed)) encode_word(word, words, ids);
}

void ByteLevelBpe::encode_plain(std::string_view text, Words& words, std::vector<int32_t>& ids) const {
  while (!text.empty()) {
    const size_t n_valid = valid_utf8_prefix(text);
    if (n_valid > 0) encode_valid(text.substr(0, n_valid), words, ids);
    text.remove_prefix(n_valid);
    size_t n_invalid = 0;
    while (n_invalid < text.size() && valid_utf8_prefix(text.substr(n_invalid, 4)) == 0) ++n_invalid;
    if (n_invalid > 0) encode_word(text.substr(0, n_invalid), words, ids);
    text.remove_prefix(n_invalid);
  }
}

void ByteLevelBpe::encode_text(std::string_view text, Words& words, std::vector<int32_t>& ids) const {
  size_t plain = 0;  // where the text that is not encoded yet begins
  for (size_t i = 0; i < text.size();) {
    int32_t found = -1;
    for (const int32_t id : user_defined_[static_cast<uint8_t>(text[i])]) {
      if (text.substr(i).starts_with(vocabulary_.tokens[static_cast<size_t>(id)])) {
        found = id;
        break;
      }
    }
    if (found < 0) {
      ++i;
      continue;
    }
    encode_plain(text.substr(plain, i - plain), words, ids);
    ids.push_back(found);
    i += vocabulary_.tokens[static_cast<size_t>(found)].size();
    plain = i;
  }
  encode_plain(text.substr(plain), words, ids);
}

std::vector<int32_t> ByteLevelBpe::encode(std::string_view text) const {
  Words words;
  std::vector<int32_t> ids;
  encode_text(text, words, ids);
  return ids;
}

std::vector<std::vector<int32_t>> ByteLevelBpe::encode_all(const std::vector<std::string>& texts) const {
  std::vector<std::vector<int32_t>> all(texts.size());
  std::exception_ptr error;
#pragma omp parallel if (texts.size() > 1)
  {
    Words words;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < static_cast<int64_t>(texts.size()); ++i) {
      try {
        encode_text(texts[static_cast<size_t>(i)], words, all[static_cast<size_t>(i)]);
      } catch (...) {
#pragma omp critical(byte_level_bpe_error)
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
  return all;
}

std::string ByteLevelBpe::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) text += token_text(vocabulary_, id);
  return text;
}

}  // namespace elastify
