#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "data/pre_tokenizer.h"
#include "data/sentencepiece_model.h"
#include "data/text_lines.h"
#include "data/vocabulary.h"
#include "data/vocabulary_checks.h"

// Hugging Face's tokenizer files. tokenizer.json (of the `tokenizers` library) holds tokens, merges and the
// rules for cutting text. tokenizer_config.json says which tokens are special and holds the chat template.
// Models with a sentencepiece tokenizer have tokenizer.model as well, which then takes precedence.

namespace elastify {
namespace {

using nlohmann::json;

/// A file with more ids without a token than this is taken for corrupt.
constexpr int64_t kMaxGaps = 65536;

json parse_json(const fs::path& file) {
  json value = parse_json_text(file.string(), read_text(file));
  if (!value.is_object()) fail("{}: expected a JSON object, got {}", file.string(), value.type_name());
  return value;
}

/// Returns an empty object if there is no such file.
json parse_json_if_there(const fs::path& file) {
  return fs::is_regular_file(file) ? parse_json(file) : json::object();
}

/// Returns `object[key]`, or null.
const json& member(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string text_or(const json& value, std::string_view otherwise) {
  return value.is_string() ? value.get<std::string>() : std::string(otherwise);
}

bool flag_or(const json& value, bool otherwise) {
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

/// Names the `type` of a section and of the sections inside it, for messages.
std::string describe(const json& section) {
  if (!section.is_object()) return section.is_null() ? "none" : section.type_name();
  std::string text = text_or(member(section, "type"), "?");
  for (const char* list : {"pretokenizers", "normalizers"}) {
    if (!member(section, list).is_array()) continue;
    text += " [";
    for (const json& part : member(section, list)) text += (text.back() == '[' ? "" : ", ") + describe(part);
    text += "]";
  }
  const json& pattern = member(section, "pattern");
  if (pattern.is_object()) text += " " + pattern.dump(-1, ' ', false, json::error_handler_t::replace);
  return text;
}

/// True if the section is of this type, or a sequence with such a part.
bool has_part(const json& section, std::string_view type) {
  if (text_or(member(section, "type"), "") == type) return true;
  for (const char* list : {"pretokenizers", "normalizers", "decoders", "processors"}) {
    for (const json& part : member(section, list)) {
      if (has_part(part, type)) return true;
    }
  }
  return false;
}

// --- byte-level BPE ---

/// Appends the patterns of a pre_tokenizer section. Returns false for a kind that has no patterns.
bool collect_patterns(const json& section, std::vector<std::string>& patterns) {
  const std::string type = text_or(member(section, "type"), "");
  if (type == "Sequence") {
    for (const json& part : member(section, "pretokenizers")) {
      if (!collect_patterns(part, patterns)) return false;
    }
    return true;
  }
  if (type == "ByteLevel") {
    if (flag_or(member(section, "add_prefix_space"), true)) return false;
    if (flag_or(member(section, "use_regex"), true)) patterns.emplace_back(kGpt2Pattern);
    return true;
  }
  if (type == "Digits") {
    patterns.emplace_back(flag_or(member(section, "individual_digits"), false) ? kDigitPattern
                                                                               : kDigitsPattern);
    return true;
  }
  if (type == "Split") {
    const json& regex = member(member(section, "pattern"), "Regex");
    const bool invert = flag_or(member(section, "invert"), false);
    const std::string behavior = text_or(member(section, "behavior"), "");
    // Known patterns cover all text, so "remove what does not match" removes nothing.
    if (!regex.is_string() || !((behavior == "Isolated" && !invert) || (behavior == "Removed" && invert)))
      return false;
    patterns.push_back(regex.get<std::string>());
    return true;
  }
  return false;
}

std::string read_pre_tokenizer(const json& section) {
  std::vector<std::string> patterns;
  std::string_view pre;
  if (collect_patterns(section, patterns)) pre = find_pre_tokenizer(patterns);
  if (pre.empty()) {
    throw Error(fmt::format("pre_tokenizer: unknown: {}", describe(section)),
                fmt::format("known are those of GGUF's {}", known_pre_tokenizers()));
  }
  return std::string(pre);
}

bool read_nfc(const json& section) {
  if (section.is_null()) return false;
  if (text_or(member(section, "type"), "") == "NFC") return true;
  const json& parts = member(section, "normalizers");
  if (parts.is_array() && std::all_of(parts.begin(), parts.end(), [](const json& part) {
        return text_or(member(part, "type"), "") == "NFC";
      }))
    return !parts.empty();
  fail("normalizer: expected none or NFC, got {}", describe(section));
}

std::vector<std::string> read_merges(const json& merges) {
  if (!merges.is_array()) fail("model.merges: expected an array, got {}", merges.type_name());
  std::vector<std::string> result;
  result.reserve(merges.size());
  for (const json& merge : merges) {
    if (merge.is_string()) {
      result.push_back(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      result.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    } else {
      fail("model.merges[{}]: expected \"left right\" or [left, right]", result.size());
    }
  }
  return result;
}

// --- tokens ---

/// Makes room for `id`. Ids that are skipped become unused tokens.
void reserve_id(Vocabulary& vocabulary, int64_t id, int64_t n_gaps_allowed, std::string_view token) {
  if (id < 0 || id >= vocabulary.size() + n_gaps_allowed + 1)
    fail("token {:?}: id {} is out of range: there are {} tokens", token, id, vocabulary.size());
  const size_t n = std::max(vocabulary.tokens.size(), static_cast<size_t>(id) + 1);
  vocabulary.tokens.resize(n);
  vocabulary.types.resize(n, TokenType::kUnused);
  if (vocabulary.kind == TokenizerKind::kSentencePiece) vocabulary.scores.resize(n, -1000);
}

void read_tokens(const json& tokens, Vocabulary& vocabulary) {
  if (!tokens.is_object() || tokens.empty()) fail("model.vocab: expected an object of tokens and ids");
  const auto n = static_cast<int64_t>(tokens.size());
  reserve_id(vocabulary, n - 1, n, "");
  for (const auto& [token, id] : tokens.items()) {
    if (!id.is_number_integer())
      fail("model.vocab: token {:?}: expected an id, got {}", token, id.type_name());
    if (id.get<int64_t>() >= n + kMaxGaps)
      fail("model.vocab: token {:?}: id {} of only {} tokens", token, id.get<int64_t>(), n);
    reserve_id(vocabulary, id.get<int64_t>(), kMaxGaps, token);
    const auto place = id.get<size_t>();
    if (vocabulary.types[place] != TokenType::kUnused)
      fail("model.vocab: tokens {:?} and {:?} have the same id {}", vocabulary.tokens[place], token, place);
    vocabulary.tokens[place] = token;
    vocabulary.types[place] = TokenType::kNormal;
  }
}

void add_token(Vocabulary& vocabulary, int64_t id, std::string content, bool special) {
  reserve_id(vocabulary, id, kMaxGaps, content);
  const auto place = static_cast<size_t>(id);
  if (vocabulary.kind == TokenizerKind::kSentencePiece && !special)
    content = replace_all(content, " ", kSpaceSign);
  TokenType& type = vocabulary.types[place];
  if (type == TokenType::kUnused) {
    vocabulary.tokens[place] = content;
  } else if (vocabulary.tokens[place] != content && vocabulary.kind != TokenizerKind::kWordPiece) {
    fail("added token {:?} has the id {} of token {:?}", content, id, vocabulary.tokens[place]);
  }
  if (type != TokenType::kUnknown && type != TokenType::kByte)
    type = special ? TokenType::kControl : TokenType::kUserDefined;
}

/// Reads the added tokens from the first place that has them: tokenizer.json, tokenizer_config.json,
/// added_tokens.json.
void read_added_tokens(const json& tokenizer, const json& config, const fs::path& directory,
                       Vocabulary& vocabulary) {
  struct Added {
    std::string content;
    bool special;
  };
  std::map<int64_t, Added> added;  // sorted by id, so that only real gaps count as gaps
  const auto read = [&](const json& id, const json& token) {
    if (!id.is_number_integer() || !member(token, "content").is_string())
      fail("added token: expected an id and a content");
    added[id.get<int64_t>()] = {member(token, "content").get<std::string>(),
                                flag_or(member(token, "special"), false)};
  };
  const json& listed = member(tokenizer, "added_tokens");
  const json& decoder = member(config, "added_tokens_decoder");
  if (listed.is_array()) {
    with_context((directory / "tokenizer.json").string(), [&] {
      for (const json& token : listed) read(member(token, "id"), token);
    });
  } else if (decoder.is_object()) {
    with_context((directory / "tokenizer_config.json").string(), [&] {
      for (const auto& [id, token] : decoder.items()) read(json::parse(id, nullptr, false), token);
    });
  } else {
    const fs::path file = directory / "added_tokens.json";
    const json contents = parse_json_if_there(file);
    for (const auto& [content, id] : contents.items()) {
      if (!id.is_number_integer()) fail("{}: token {:?}: expected an id", file.string(), content);
      added[id.get<int64_t>()] = {content, false};
    }
  }
  for (const auto& [id, token] : added) add_token(vocabulary, id, token.content, token.special);
}

void name_gaps(Vocabulary& vocabulary) {
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.types[i] == TokenType::kUnused && vocabulary.tokens[i].empty())
      vocabulary.tokens[i] = fmt::format("[PAD{}]", i);
  }
}

// --- tokenizer.json ---

Vocabulary read_byte_level(const json& tokenizer) {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kByteLevelBpe;
  vocabulary.add_space_prefix = false;
  const json& model = member(tokenizer, "model");
  read_tokens(member(model, "vocab"), vocabulary);
  vocabulary.merges = read_merges(member(model, "merges"));
  vocabulary.ignore_merges = flag_or(member(model, "ignore_merges"), false);
  vocabulary.pre = read_pre_tokenizer(member(tokenizer, "pre_tokenizer"));
  vocabulary.nfc = read_nfc(member(tokenizer, "normalizer"));
  return vocabulary;
}

/// Reads a sentencepiece BPE model that was converted to tokenizer.json. Only the order of the merges is left
/// of its scores, and encoding needs no more.
Vocabulary read_converted_sentencepiece(const json& tokenizer) {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kSentencePiece;
  vocabulary.pre = "default";
  const json& model = member(tokenizer, "model");
  read_tokens(member(model, "vocab"), vocabulary);

  std::unordered_map<std::string, size_t> ranks;
  for (const std::string& merge : read_merges(member(model, "merges"))) {
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos) fail("model.merges: expected \"left right\", got {:?}", merge);
    ranks.emplace(merge.substr(0, space) + merge.substr(space + 1), ranks.size());
  }
  const std::string unknown = text_or(member(model, "unk_token"), "<unk>");
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const auto rank = ranks.find(vocabulary.tokens[i]);
    vocabulary.scores[i] = -static_cast<float>(rank == ranks.end() ? ranks.size() + i : rank->second);
    if (vocabulary.types[i] != TokenType::kNormal) continue;
    if (vocabulary.tokens[i] == unknown) {
      vocabulary.types[i] = TokenType::kUnknown;
      vocabulary.unknown = static_cast<int64_t>(i);
      vocabulary.scores[i] = 0;
    } else if (byte_piece_value(vocabulary.tokens[i]) >= 0) {
      vocabulary.types[i] = TokenType::kByte;
      vocabulary.scores[i] = 0;
    }
  }
  const json& pre = member(tokenizer, "pre_tokenizer");
  vocabulary.add_space_prefix = has_part(member(tokenizer, "normalizer"), "Prepend") ||
                                (text_or(member(pre, "type"), "") == "Metaspace" &&
                                 text_or(member(pre, "prepend_scheme"), "always") != "never");
  return vocabulary;
}

/// Reads tokens into GGUF's notation, where the start of a word has a sign and its continuation has none.
Vocabulary read_word_piece(const json& tokenizer) {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kWordPiece;
  vocabulary.pre = "default";
  vocabulary.add_space_prefix = false;
  read_tokens(member(member(tokenizer, "model"), "vocab"), vocabulary);
  for (std::string& token : vocabulary.tokens) {
    if (token.starts_with("##")) {
      token.erase(0, 2);
    } else if (!(token.starts_with("[") && token.ends_with("]"))) {
      token.insert(0, kSpaceSign);
    }
  }
  return vocabulary;
}

/// Returns nothing if tokenizer.json is of a kind that must be read from tokenizer.model, and that file
/// exists.
std::optional<Vocabulary> read_tokenizer_json(const json& tokenizer, bool has_model_file) {
  const json& model = member(tokenizer, "model");
  const std::string type = text_or(member(model, "type"), member(model, "merges").is_array() ? "BPE" : "");
  if (type == "WordPiece") return read_word_piece(tokenizer);
  const bool byte_level = has_part(member(tokenizer, "pre_tokenizer"), "ByteLevel") ||
                          has_part(member(tokenizer, "decoder"), "ByteLevel");
  if (type == "BPE" && byte_level) return read_byte_level(tokenizer);
  if (has_model_file) return std::nullopt;
  if (type == "BPE" && flag_or(member(model, "byte_fallback"), false))
    return read_converted_sentencepiece(tokenizer);
  if (type.empty()) fail("model: missing, or of no known type");
  fail("model: expected byte-level BPE, sentencepiece BPE with byte fallback, or WordPiece, got {}", type);
}

Vocabulary read_base(const fs::path& directory, const json& tokenizer) {
  const fs::path json_file = directory / "tokenizer.json";
  const fs::path model_file = directory / "tokenizer.model";
  if (fs::is_regular_file(json_file)) {
    auto found = with_context(
        json_file.string(), [&] { return read_tokenizer_json(tokenizer, fs::is_regular_file(model_file)); });
    if (found) return std::move(*found);
  }
  return read_sentencepiece_file(model_file);
}

// --- settings ---

std::optional<int64_t> find_id(const Vocabulary& vocabulary, const std::string& token) {
  const auto found = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), token);
  if (found == vocabulary.tokens.end()) return std::nullopt;
  return found - vocabulary.tokens.begin();
}

/// Reads "token" or {"content": "token"}; returns nothing for any other value.
std::optional<std::string> special_token(const json& value) {
  const json& content = value.is_object() ? member(value, "content") : value;
  if (!content.is_string()) return std::nullopt;
  return content.get<std::string>();
}

void read_special_tokens(const fs::path& directory, const json& config, Vocabulary& vocabulary) {
  const json map = parse_json_if_there(directory / "special_tokens_map.json");
  const auto read = [&](const char* name, std::optional<int64_t>& id, bool control) {
    auto token = special_token(member(config, name));
    if (!token) token = special_token(member(map, name));
    if (!token) return;
    auto found = find_id(vocabulary, *token);
    if (!found && vocabulary.kind == TokenizerKind::kWordPiece)
      found = find_id(vocabulary, std::string(kSpaceSign) + *token);
    if (!found) {
      log::warn("{}: {} {:?} is not in the vocabulary; ignored", directory.string(), name, *token);
      return;
    }
    id = found;
    TokenType& type = vocabulary.types[static_cast<size_t>(*found)];
    if (control && (type == TokenType::kNormal || type == TokenType::kUserDefined))
      type = TokenType::kControl;
  };
  read("bos_token", vocabulary.bos, true);
  read("eos_token", vocabulary.eos, true);
  read("pad_token", vocabulary.padding, true);
  // A sentencepiece model itself says which token is the unknown one.
  if (vocabulary.kind != TokenizerKind::kSentencePiece) read("unk_token", vocabulary.unknown, false);
  if (vocabulary.kind == TokenizerKind::kWordPiece) {
    read("cls_token", vocabulary.bos, true);
    read("sep_token", vocabulary.eos, true);
  }

  // The model's configuration gives the remaining ones by id.
  const json model_config = parse_json_if_there(directory / "config.json");
  const auto read_id = [&](const char* name, std::optional<int64_t>& id) {
    const json& value = member(model_config, name);
    const json& first = value.is_array() && !value.empty() ? value.front() : value;
    if (id || !first.is_number_integer()) return;
    const auto number = first.get<int64_t>();
    if (number >= 0 && number < vocabulary.size()) id = number;
  };
  read_id("bos_token_id", vocabulary.bos);
  read_id("eos_token_id", vocabulary.eos);
}

/// Reads which special tokens a post_processor puts around a text.
void read_template(const json& section, Vocabulary& vocabulary) {
  for (const json& part : member(section, "processors")) read_template(part, vocabulary);
  const json& single = member(section, "single");
  if (!single.is_array() || single.empty()) return;
  const auto is_token = [&](const json& part, const std::optional<int64_t>& id) {
    const json& token = member(member(part, "SpecialToken"), "id");
    return id && token.is_string() && token.get<std::string>() == vocabulary.tokens[static_cast<size_t>(*id)];
  };
  vocabulary.add_bos = is_token(single.front(), vocabulary.bos);
  vocabulary.add_eos = single.size() > 1 && is_token(single.back(), vocabulary.eos);
}

void read_added_at_the_ends(const json& tokenizer, const json& config, Vocabulary& vocabulary) {
  const std::string type = text_or(member(config, "tokenizer_class"), "");
  if (vocabulary.kind == TokenizerKind::kByteLevelBpe) vocabulary.add_bos = false;
  if (vocabulary.kind == TokenizerKind::kWordPiece) vocabulary.add_bos = vocabulary.add_eos = true;
  if (type.starts_with("LlamaTokenizer")) vocabulary.add_bos = true;
  read_template(member(tokenizer, "post_processor"), vocabulary);
  vocabulary.add_bos = flag_or(member(config, "add_bos_token"), vocabulary.add_bos) && vocabulary.bos;
  vocabulary.add_eos = flag_or(member(config, "add_eos_token"), vocabulary.add_eos) && vocabulary.eos;
}

std::string read_chat_template(const fs::path& directory, const json& config) {
  if (fs::is_regular_file(directory / "chat_template.jinja"))
    return read_text(directory / "chat_template.jinja");
  const json& value = member(config, "chat_template");
  if (!value.is_array()) return text_or(value, "");
  std::string chosen;  // of several named templates: "default", else the first
  for (const json& entry : value) {
    const std::string text = text_or(member(entry, "template"), "");
    const bool is_default = text_or(member(entry, "name"), "") == "default";
    if (chosen.empty() || is_default) chosen = text;
    if (is_default) break;
  }
  return chosen;
}

}  // namespace

bool has_hf_tokenizer(const fs::path& directory) {
  return fs::is_regular_file(directory / "tokenizer.json") ||
         fs::is_regular_file(directory / "tokenizer.model");
}

Vocabulary read_hf_directory(const fs::path& directory) {
  const json tokenizer = parse_json_if_there(directory / "tokenizer.json");
  const json config = parse_json_if_there(directory / "tokenizer_config.json");
  Vocabulary vocabulary = read_base(directory, tokenizer);
  read_added_tokens(tokenizer, config, directory, vocabulary);
  name_gaps(vocabulary);
  read_special_tokens(directory, config, vocabulary);
  read_added_at_the_ends(tokenizer, config, vocabulary);
  vocabulary.chat_template = read_chat_template(directory, config);
  with_context(directory.string(), [&] { check_vocabulary(vocabulary); });
  return vocabulary;
}

}  // namespace elastify
