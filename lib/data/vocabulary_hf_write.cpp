#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/pre_tokenizer.h"
#include "data/sentencepiece_model.h"
#include "data/vocabulary.h"
#include "data/vocabulary_checks.h"

namespace elastify {
namespace {

using json = nlohmann::ordered_json;

json byte_level(bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json pre_tokenizer_section(std::string_view pre) {
  std::vector<std::string> patterns = pre_tokenizer_patterns(pre);
  const bool gpt2_last = patterns.back() == kGpt2Pattern;
  if (gpt2_last) patterns.pop_back();
  json parts = json::array();
  for (const std::string& pattern : patterns) {
    if (pattern == kDigitPattern || pattern == kDigitsPattern) {
      parts.push_back({{"type", "Digits"}, {"individual_digits", pattern == kDigitPattern}});
    } else {
      parts.push_back({{"type", "Split"},
                       {"pattern", {{"Regex", pattern}}},
                       {"behavior", "Isolated"},
                       {"invert", false}});
    }
  }
  parts.push_back(byte_level(gpt2_last));
  if (parts.size() == 1) return parts.front();
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

const std::string& token_at(const Vocabulary& vocabulary, int64_t id) {
  return vocabulary.tokens.at(static_cast<size_t>(id));
}

json post_processor_section(const Vocabulary& vocabulary) {
  if (!vocabulary.add_bos && !vocabulary.add_eos) return byte_level(true);
  json single = json::array();
  json pair = json::array();
  json special = json::object();
  const auto put_special = [&](const std::optional<int64_t>& id) {
    const std::string& token = token_at(vocabulary, id.value());
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    special[token] = {{"id", token}, {"ids", json::array({*id})}, {"tokens", json::array({token})}};
  };
  const auto put_pair = [&](const char* sequence, int type_id) {
    if (vocabulary.add_bos)
      pair.push_back(
          {{"SpecialToken", {{"id", token_at(vocabulary, *vocabulary.bos)}, {"type_id", type_id}}}});
    pair.push_back({{"Sequence", {{"id", sequence}, {"type_id", type_id}}}});
    if (vocabulary.add_eos)
      pair.push_back(
          {{"SpecialToken", {{"id", token_at(vocabulary, *vocabulary.eos)}, {"type_id", type_id}}}});
  };
  if (vocabulary.add_bos) put_special(vocabulary.bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (vocabulary.add_eos) put_special(vocabulary.eos);
  put_pair("A", 0);
  put_pair("B", 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

json added_token(const Vocabulary& vocabulary, size_t id) {
  std::string content = vocabulary.tokens[id];
  if (vocabulary.kind == TokenizerKind::kSentencePiece) content = replace_all(content, kSpaceSign, " ");
  return {{"content", content},  {"single_word", false},
          {"lstrip", false},     {"rstrip", false},
          {"normalized", false}, {"special", vocabulary.types[id] != TokenType::kUserDefined}};
}

bool is_added(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kUserDefined;
}

json tokenizer_json(const Vocabulary& vocabulary) {
  json added = json::array();
  json tokens = json::object();
  // Entries go straight into the underlying list. Searching for each key among those before would take
  // minutes.
  auto& entries = tokens.get_ref<json::object_t&>();
  entries.reserve(vocabulary.tokens.size());
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) entries.emplace_back(vocabulary.tokens[i], i);
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (!is_added(vocabulary.types[i])) continue;
    json entry = {{"id", i}};
    entry.update(added_token(vocabulary, i));
    added.push_back(std::move(entry));
  }
  json merges = json::array();
  for (const std::string& merge : vocabulary.merges) {
    const size_t space = merge.find(' ', 1);
    merges.push_back(json::array({merge.substr(0, space), merge.substr(space + 1)}));
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", vocabulary.nfc ? json{{"type", "NFC"}} : json(nullptr)},
          {"pre_tokenizer", pre_tokenizer_section(vocabulary.pre)},
          {"post_processor", post_processor_section(vocabulary)},
          {"decoder",
           {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", vocabulary.ignore_merges},
            {"vocab", std::move(tokens)},
            {"merges", std::move(merges)}}}};
}

json special_tokens(const Vocabulary& vocabulary) {
  json map = json::object();
  const auto put = [&](const char* name, const std::optional<int64_t>& id) {
    if (id) map[name] = token_at(vocabulary, *id);
  };
  put("bos_token", vocabulary.bos);
  put("eos_token", vocabulary.eos);
  put("unk_token", vocabulary.unknown);
  put("pad_token", vocabulary.padding);
  return map;
}

json tokenizer_config(const Vocabulary& vocabulary) {
  const bool sentencepiece = vocabulary.kind == TokenizerKind::kSentencePiece;
  json config = json::object();
  config["tokenizer_class"] = sentencepiece ? "LlamaTokenizer" : "PreTrainedTokenizerFast";
  config["add_bos_token"] = vocabulary.add_bos;
  config["add_eos_token"] = vocabulary.add_eos;
  if (sentencepiece) {
    config["add_prefix_space"] = vocabulary.add_space_prefix;
    config["legacy"] = true;  // makes `transformers` put a space before every text, as sentencepiece does
  }
  config["clean_up_tokenization_spaces"] = false;
  config.update(special_tokens(vocabulary));
  json added = json::object();
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (is_added(vocabulary.types[i])) added[std::to_string(i)] = added_token(vocabulary, i);
  }
  config["added_tokens_decoder"] = std::move(added);
  if (!vocabulary.chat_template.empty()) config["chat_template"] = vocabulary.chat_template;
  return config;
}

void write_json(const fs::path& file, const json& value) {
  write_text(file, value.dump(2) + "\n");
}

}  // namespace

void write_hf_files(const Vocabulary& vocabulary, const fs::path& directory) {
  check_vocabulary(vocabulary);
  if (vocabulary.kind == TokenizerKind::kWordPiece)
    fail("cannot write a WordPiece vocabulary as Hugging Face files");
  if (vocabulary.kind == TokenizerKind::kSentencePiece) {
    write_text(directory / "tokenizer.model", vocabulary.sentencepiece_model.empty()
                                                  ? to_sentencepiece_model(vocabulary)
                                                  : vocabulary.sentencepiece_model);
  } else {
    write_json(directory / "tokenizer.json", tokenizer_json(vocabulary));
  }
  write_json(directory / "tokenizer_config.json", tokenizer_config(vocabulary));
  write_json(directory / "special_tokens_map.json", special_tokens(vocabulary));
}

}  // namespace elastify
