#include "data/vocabulary.h"

#include <algorithm>
#include <unordered_set>

#include "base/error.h"
#include "base/hash.h"
#include "data/byte_level_bpe.h"
#include "data/sentencepiece_model.h"
#include "data/utf8.h"
#include "data/vocabulary_checks.h"

namespace elastify {
namespace {

/// A file that claims more tokens is taken for corrupt.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

void check_merges(const Vocabulary& vocabulary, const std::unordered_set<std::string_view>& tokens) {
  if (vocabulary.merges.empty()) fail("a byte-level BPE vocabulary needs merges, there are none");
  std::string joined;
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const std::string_view merge = vocabulary.merges[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size())
      fail("merge {}: expected two tokens with a space between, got {:?}", i, merge);
    joined = merge.substr(0, space);
    joined += merge.substr(space + 1);
    for (const std::string_view token :
         {merge.substr(0, space), merge.substr(space + 1), std::string_view(joined)}) {
      if (!tokens.contains(token)) fail("merge {}: token {:?} is not in the vocabulary", i, token);
    }
  }
}

/// Returns the one file in `directory` that is named tok*<extension>, if any.
/// \throws Error  if there are several
std::optional<fs::path> find_named_tok(const fs::path& directory, const char* extension) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("tok") && entry.path().extension() == extension && entry.is_regular_file())
      found.push_back(entry.path());
  }
  if (found.empty()) return std::nullopt;
  std::sort(found.begin(), found.end());
  if (found.size() > 1) {
    throw Error(fmt::format("{}: several tokenizers: {} and {}", directory.string(),
                            found[0].filename().string(), found[1].filename().string()),
                "choose one with --tokenizer");
  }
  return found.front();
}

std::optional<Vocabulary> find_in_directory(const fs::path& directory) {
  if (has_hf_tokenizer(directory)) return read_hf_directory(directory);
  if (const auto file = find_named_tok(directory, ".model")) return read_sentencepiece_file(*file);
  if (fs::is_regular_file(directory / "tokenizer.bin"))
    return read_llama2c_tokenizer(directory / "tokenizer.bin");
  if (const auto file = find_named_tok(directory, ".bin")) return read_llama2c_tokenizer(*file);
  return std::nullopt;
}

std::optional<Vocabulary> find_in_gguf(const fs::path& file) {
  const GgufFile gguf = GgufFile::open(file);
  const GgufMetadata& metadata = gguf.metadata();
  if (!metadata.contains("tokenizer.ggml.model") || metadata.string("tokenizer.ggml.model") == "no_vocab")
    return std::nullopt;
  return with_context(file.string(), [&] { return read_gguf_keys(metadata); });
}

Vocabulary read_named(const fs::path& tokenizer) {
  if (!fs::exists(tokenizer)) fail("{}: no such file or directory", tokenizer.string());
  if (fs::is_directory(tokenizer)) {
    auto found = find_in_directory(tokenizer);
    if (!found)
      throw Error(fmt::format("{}: no tokenizer in this directory", tokenizer.string()),
                  "expected tokenizer.json, tokenizer.model, tok*.model or tok*.bin");
    return std::move(*found);
  }
  if (tokenizer.extension() == ".gguf" || GgufFile::has_magic(tokenizer)) {
    auto found = find_in_gguf(tokenizer);
    if (!found) fail("{}: holds no tokenizer", tokenizer.string());
    return std::move(*found);
  }
  if (tokenizer.extension() == ".json") {
    if (tokenizer.filename() != "tokenizer.json")
      throw Error(fmt::format("{}: a tokenizer in JSON must be named tokenizer.json", tokenizer.string()),
                  "its settings are read from the files beside it");
    return read_hf_directory(tokenizer.parent_path());
  }
  if (tokenizer.extension() == ".bin") return read_llama2c_tokenizer(tokenizer);
  if (tokenizer.extension() == ".model") return read_sentencepiece_file(tokenizer);
  throw Error(fmt::format("{}: not a tokenizer file", tokenizer.string()),
              "expected a directory, tokenizer.json, *.model, *.bin or *.gguf");
}

}  // namespace

void check_vocabulary(const Vocabulary& vocabulary) {
  const size_t n = vocabulary.tokens.size();
  if (n == 0) fail("the vocabulary has no tokens");
  if (vocabulary.size() > kMaxTokens) fail("{} tokens, more than the {} that are supported", n, kMaxTokens);
  if (vocabulary.types.size() != n) fail("expected {} token types, got {}", n, vocabulary.types.size());
  if (vocabulary.kind == TokenizerKind::kSentencePiece && vocabulary.scores.size() != n)
    fail("expected {} token scores, got {}", n, vocabulary.scores.size());
  std::unordered_set<std::string_view> tokens;
  tokens.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    const std::string& token = vocabulary.tokens[i];
    if (!is_utf8(token)) fail("token {} is not UTF-8", i);
    if (!tokens.insert(token).second) {
      const auto first = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), token);
      fail("tokens {} and {} are the same: {:?}", first - vocabulary.tokens.begin(), i, token);
    }
    const auto type = static_cast<int32_t>(vocabulary.types[i]);
    if (type < 1 || type > 6) fail("token {} has the unknown type {}", i, type);
  }
  const auto check_id = [&](const char* name, const std::optional<int64_t>& id) {
    if (id && (*id < 0 || *id >= vocabulary.size()))
      fail("{} token id {} is not in the vocabulary of {} tokens", name, *id, n);
  };
  check_id("bos", vocabulary.bos);
  check_id("eos", vocabulary.eos);
  check_id("unknown", vocabulary.unknown);
  check_id("padding", vocabulary.padding);
  if (vocabulary.add_bos && !vocabulary.bos) fail("a bos token is to be added, but there is none");
  if (vocabulary.add_eos && !vocabulary.eos) fail("an eos token is to be added, but there is none");
  if (vocabulary.kind == TokenizerKind::kByteLevelBpe) check_merges(vocabulary, tokens);
}

int byte_piece_value(std::string_view token) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = digit(token[3]);
  const int low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (;;) {
    const size_t at = text.find(from);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += to;
    text.remove_prefix(at + from.size());
  }
}

std::string token_text(const Vocabulary& vocabulary, int64_t id) {
  if (id < 0 || id >= vocabulary.size())
    fail("token id {} is not in the vocabulary of {} tokens", id, vocabulary.size());
  const std::string& token = vocabulary.tokens[static_cast<size_t>(id)];
  switch (vocabulary.types[static_cast<size_t>(id)]) {
    case TokenType::kControl:
    case TokenType::kUnknown:
    case TokenType::kUnused:
      return {};
    case TokenType::kByte:
      if (const int value = byte_piece_value(token); value >= 0)
        return std::string(1, static_cast<char>(value));
      return token;
    case TokenType::kUserDefined:
      if (vocabulary.kind == TokenizerKind::kByteLevelBpe) return token;
      break;
    case TokenType::kNormal:
      break;
  }
  if (vocabulary.kind == TokenizerKind::kByteLevelBpe) return from_byte_notation(token);
  return replace_all(token, kSpaceSign, " ");
}

std::string digest(const Vocabulary& vocabulary) {
  Sha256 sum;
  const auto add = [&](std::string_view text) {
    sum.update(fmt::format("{}:", text.size()));
    sum.update(text);
  };
  const auto add_list = [&](const auto& list, auto&& text_of) {
    sum.update(fmt::format("{} of them:", list.size()));
    for (const auto& item : list) add(text_of(item));
  };
  const auto same = [](const std::string& text) -> const std::string& { return text; };
  add_list(vocabulary.tokens, same);
  add_list(vocabulary.merges, same);
  add_list(vocabulary.scores, [](float score) { return fmt::format("{}", score); });
  add_list(vocabulary.types, [](TokenType type) { return fmt::format("{}", static_cast<int32_t>(type)); });
  for (const auto& id : {vocabulary.bos, vocabulary.eos, vocabulary.unknown, vocabulary.padding})
    add(id ? fmt::format("{}", *id) : "");
  for (const bool flag : {vocabulary.ignore_merges, vocabulary.nfc, vocabulary.add_bos, vocabulary.add_eos,
                          vocabulary.add_space_prefix})
    add(flag ? "1" : "0");
  add(fmt::format("{}", static_cast<int>(vocabulary.kind)));
  for (const std::string& text : {vocabulary.pre, vocabulary.chat_template, vocabulary.sentencepiece_model})
    add(text);
  return sum.finish();
}

void pad_vocabulary(Vocabulary& vocabulary, int64_t n_tokens) {
  if (vocabulary.size() > n_tokens)
    fail("the vocabulary has {} tokens, the model only {}", vocabulary.size(), n_tokens);
  for (int64_t id = vocabulary.size(); id < n_tokens; ++id) {
    vocabulary.tokens.push_back(fmt::format("[PAD{}]", id));
    vocabulary.types.push_back(TokenType::kUnused);
    if (!vocabulary.scores.empty()) vocabulary.scores.push_back(-1000);
  }
}

Vocabulary read_sentencepiece_file(const fs::path& file) {
  return with_context(file.string(), [&] {
    Vocabulary vocabulary = parse_sentencepiece_model(read_text(file)).vocabulary;
    check_vocabulary(vocabulary);
    return vocabulary;
  });
}

std::optional<Vocabulary> find_vocabulary(const fs::path& model, const fs::path& tokenizer) {
  if (!tokenizer.empty()) return read_named(tokenizer);
  if (!fs::exists(model)) fail("{}: no such file or directory", model.string());
  if (fs::is_directory(model)) return find_in_directory(model);
  if (model.extension() == ".gguf" || GgufFile::has_magic(model)) return find_in_gguf(model);
  return find_in_directory(model.has_parent_path() ? model.parent_path() : fs::path("."));
}

Vocabulary load_vocabulary(const fs::path& model, const fs::path& tokenizer) {
  auto found = find_vocabulary(model, tokenizer);
  if (!found)
    throw Error(fmt::format("{}: no tokenizer in or beside it", model.string()),
                "name one with --tokenizer: a directory, tokenizer.json, *.model, *.bin or *.gguf");
  return std::move(*found);
}

}  // namespace elastify
