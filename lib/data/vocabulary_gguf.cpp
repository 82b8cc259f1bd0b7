#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "data/sentencepiece_model.h"
#include "data/vocabulary.h"
#include "data/vocabulary_checks.h"

namespace elastify {
namespace {

constexpr const char* kModel = "tokenizer.ggml.model";
constexpr const char* kPre = "tokenizer.ggml.pre";
constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kScores = "tokenizer.ggml.scores";
constexpr const char* kTypes = "tokenizer.ggml.token_type";
constexpr const char* kMerges = "tokenizer.ggml.merges";
constexpr const char* kBos = "tokenizer.ggml.bos_token_id";
constexpr const char* kEos = "tokenizer.ggml.eos_token_id";
constexpr const char* kUnknown = "tokenizer.ggml.unknown_token_id";
constexpr const char* kPadding = "tokenizer.ggml.padding_token_id";
constexpr const char* kClassify = "tokenizer.ggml.cls_token_id";
constexpr const char* kSeparator = "tokenizer.ggml.seperator_token_id";  // the format spells it like this
constexpr const char* kAddBos = "tokenizer.ggml.add_bos_token";
constexpr const char* kAddEos = "tokenizer.ggml.add_eos_token";
constexpr const char* kAddSpacePrefix = "tokenizer.ggml.add_space_prefix";
constexpr const char* kChatTemplate = "tokenizer.chat_template";

const char* model_name(TokenizerKind kind) {
  switch (kind) {
    case TokenizerKind::kSentencePiece:
      return "llama";
    case TokenizerKind::kByteLevelBpe:
      return "gpt2";
    case TokenizerKind::kWordPiece:
      return "bert";
  }
  return "";
}

/// Guesses the types for files without them, which older converters wrote.
std::vector<TokenType> guess_types(const Vocabulary& vocabulary) {
  std::vector<TokenType> types(vocabulary.tokens.size(), TokenType::kNormal);
  if (vocabulary.kind == TokenizerKind::kSentencePiece) {
    for (size_t i = 0; i < types.size(); ++i) {
      if (byte_piece_value(vocabulary.tokens[i]) >= 0) types[i] = TokenType::kByte;
    }
  }
  for (const auto& id : {vocabulary.bos, vocabulary.eos, vocabulary.padding}) {
    if (id && *id < vocabulary.size()) types[static_cast<size_t>(*id)] = TokenType::kControl;
  }
  if (vocabulary.unknown && *vocabulary.unknown < vocabulary.size())
    types[static_cast<size_t>(*vocabulary.unknown)] = TokenType::kUnknown;
  return types;
}

/// Sets Llama's ids, which llama.cpp assumes if a sentencepiece vocabulary names none.
void default_special_ids(Vocabulary& vocabulary) {
  const auto holds = [&](size_t i, std::string_view token) {
    return i < vocabulary.tokens.size() && vocabulary.tokens[i] == token;
  };
  if (!vocabulary.unknown && holds(0, "<unk>")) vocabulary.unknown = 0;
  if (!vocabulary.bos && holds(1, "<s>")) vocabulary.bos = 1;
  if (!vocabulary.eos && holds(2, "</s>")) vocabulary.eos = 2;
}

std::optional<int64_t> read_id(const GgufMetadata& metadata, const char* key, int64_t n_tokens) {
  const auto id = metadata.integer(key);
  if (id == -1 || id == 0xFFFFFFFF) return std::nullopt;
  if (id && (*id < 0 || *id >= n_tokens)) fail("{}: expected an id below {}, got {}", key, n_tokens, *id);
  return id;
}

}  // namespace

void write_gguf_keys(const Vocabulary& vocabulary, GgufMetadata& metadata) {
  if (!vocabulary.sentencepiece_model.empty()) {
    const SentencePieceModel model = parse_sentencepiece_model(vocabulary.sentencepiece_model);
    if (model.algorithm != SentencePieceAlgorithm::kBpe)
      fail(
          "the sentencepiece model is not of type BPE, the only one that GGUF's tokenizer \"llama\" stands "
          "for");
    if (model.rewrites_characters)
      log::warn("this tokenizer replaces characters; runtimes that read GGUF do not");
    if (model.remove_extra_whitespaces)
      log::warn("this tokenizer drops outer and doubled spaces; runtimes that read GGUF keep them");
  }
  const auto set_id = [&](const char* key, const std::optional<int64_t>& id) {
    if (id) metadata.set(key, static_cast<uint32_t>(*id));
  };
  std::vector<int32_t> types;
  types.reserve(vocabulary.types.size());
  for (const TokenType type : vocabulary.types) types.push_back(static_cast<int32_t>(type));

  metadata.set(kModel, std::string(model_name(vocabulary.kind)));
  metadata.set(kPre, vocabulary.pre);
  metadata.set(kTokens, GgufArray{vocabulary.tokens});
  if (vocabulary.kind == TokenizerKind::kSentencePiece) metadata.set(kScores, GgufArray{vocabulary.scores});
  metadata.set(kTypes, GgufArray{std::move(types)});
  if (vocabulary.kind == TokenizerKind::kByteLevelBpe) metadata.set(kMerges, GgufArray{vocabulary.merges});
  if (vocabulary.kind == TokenizerKind::kWordPiece) {
    set_id(kClassify, vocabulary.bos);
    set_id(kSeparator, vocabulary.eos);
  } else {
    set_id(kBos, vocabulary.bos);
    set_id(kEos, vocabulary.eos);
  }
  set_id(kUnknown, vocabulary.unknown);
  set_id(kPadding, vocabulary.padding);
  metadata.set(kAddBos, vocabulary.add_bos);
  metadata.set(kAddEos, vocabulary.add_eos);
  metadata.set(kAddSpacePrefix, vocabulary.add_space_prefix);
  if (!vocabulary.chat_template.empty()) metadata.set(kChatTemplate, vocabulary.chat_template);
}

Vocabulary read_gguf_keys(const GgufMetadata& metadata) {
  Vocabulary vocabulary;
  const std::string model = metadata.require_string(kModel);
  if (model == "llama") {
    vocabulary.kind = TokenizerKind::kSentencePiece;
  } else if (model == "gpt2") {
    vocabulary.kind = TokenizerKind::kByteLevelBpe;
  } else if (model == "bert") {
    vocabulary.kind = TokenizerKind::kWordPiece;
  } else {
    fail("{}: unknown tokenizer {:?}; known: llama, gpt2, bert", kModel, model);
  }
  vocabulary.pre = metadata.string(kPre).value_or("default");
  const std::vector<std::string>* tokens = metadata.strings(kTokens);
  if (tokens == nullptr) fail("{}: missing", kTokens);
  vocabulary.tokens = *tokens;
  const int64_t n = vocabulary.size();

  if (vocabulary.kind == TokenizerKind::kSentencePiece) {
    const std::vector<float>* scores = metadata.floats(kScores);
    if (scores == nullptr) fail("{}: missing", kScores);
    if (static_cast<int64_t>(scores->size()) != n)
      fail("{}: expected {} values, got {}", kScores, n, scores->size());
    vocabulary.scores = *scores;
  }
  if (vocabulary.kind == TokenizerKind::kByteLevelBpe) {
    const std::vector<std::string>* merges = metadata.strings(kMerges);
    if (merges == nullptr || merges->empty()) fail("{}: missing", kMerges);
    vocabulary.merges = *merges;
  }
  vocabulary.bos = read_id(metadata, kBos, n);
  vocabulary.eos = read_id(metadata, kEos, n);
  vocabulary.unknown = read_id(metadata, kUnknown, n);
  vocabulary.padding = read_id(metadata, kPadding, n);
  if (vocabulary.kind == TokenizerKind::kWordPiece) {
    if (!vocabulary.bos) vocabulary.bos = read_id(metadata, kClassify, n);
    if (!vocabulary.eos) vocabulary.eos = read_id(metadata, kSeparator, n);
  }
  if (vocabulary.kind == TokenizerKind::kSentencePiece) default_special_ids(vocabulary);

  if (const auto types = metadata.integers(kTypes)) {
    if (static_cast<int64_t>(types->size()) != n)
      fail("{}: expected {} values, got {}", kTypes, n, types->size());
    vocabulary.types.reserve(types->size());
    for (size_t i = 0; i < types->size(); ++i) {
      if ((*types)[i] < 1 || (*types)[i] > 6)
        fail("{}: token {} has the unknown type {}", kTypes, i, (*types)[i]);
      vocabulary.types.push_back(static_cast<TokenType>((*types)[i]));
    }
  } else {
    vocabulary.types = guess_types(vocabulary);
  }

  // If a file is silent, these are llama.cpp's defaults.
  const bool llama3 =
      vocabulary.kind == TokenizerKind::kByteLevelBpe &&
      (vocabulary.pre == "llama-bpe" || vocabulary.pre == "llama3" || vocabulary.pre == "llama-v3");
  const bool adds_bos = llama3 || vocabulary.kind != TokenizerKind::kByteLevelBpe;
  const bool adds_eos = vocabulary.kind == TokenizerKind::kWordPiece;
  vocabulary.ignore_merges = llama3;
  vocabulary.add_bos = metadata.boolean(kAddBos).value_or(adds_bos && vocabulary.bos.has_value());
  vocabulary.add_eos = metadata.boolean(kAddEos).value_or(adds_eos && vocabulary.eos.has_value());
  vocabulary.add_space_prefix =
      metadata.boolean(kAddSpacePrefix).value_or(vocabulary.kind == TokenizerKind::kSentencePiece);
  vocabulary.chat_template = metadata.string(kChatTemplate).value_or("");
  check_vocabulary(vocabulary);
  return vocabulary;
}

}  // namespace elastify
