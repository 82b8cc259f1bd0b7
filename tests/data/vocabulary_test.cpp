#include "data/vocabulary.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "data/sentencepiece_model.h"
#include "data/tokenizer.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "tokenizer_fixtures.h"

using namespace elastify;
using namespace elastify::test;

namespace {

const char* const kByteLevel[] = {"gpt-2", "llama-bpe", "qwen2", "smollm"};

fs::path write_gguf(const fs::path& path, const Vocabulary& vocabulary) {
  GgufMetadata metadata;
  metadata.set("general.architecture", std::string("llama"));
  write_gguf_keys(vocabulary, metadata);
  GgufWriter(path, metadata, {}).finish();
  return path;
}

/// A directory with one file.
void put(const TemporaryDirectory& directory, const std::string& name, const std::string& text) {
  write_text(directory / name, text);
}

nlohmann::json small_tokenizer_json() {
  return nlohmann::json::parse(R"({
    "added_tokens": [{"id": 3, "content": "<end>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

}  // namespace

TEST_CASE("vocabulary: tokenizer.json gives tokens, merges, settings and the default chat template") {
  const Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("llama-bpe"));
  CHECK(vocabulary.kind == TokenizerKind::kByteLevelBpe);
  CHECK(vocabulary.pre == "llama-bpe");
  CHECK(vocabulary.size() == 480);
  CHECK(vocabulary.merges.size() == 150);
  CHECK(vocabulary.ignore_merges);
  CHECK(vocabulary.bos == 0);
  CHECK(vocabulary.eos == 0);
  CHECK(vocabulary.add_bos);  // from the post_processor
  CHECK_FALSE(vocabulary.add_eos);
  CHECK_FALSE(vocabulary.add_space_prefix);
  CHECK(vocabulary.types[0] == TokenType::kControl);
  CHECK(vocabulary.types[1] == TokenType::kNormal);
  CHECK(vocabulary.chat_template == "{{ messages }}");

  const Vocabulary qwen2 = load_vocabulary(tokenizer_fixture("qwen2"));
  CHECK(qwen2.pre == "qwen2");
  CHECK(qwen2.nfc);
  CHECK(qwen2.tokens[480] == "<mark>");
  CHECK(qwen2.types[480] == TokenType::kUserDefined);
}

TEST_CASE("vocabulary: GGUF keys survive writing and reading") {
  const TemporaryDirectory directory;
  for (const char* name : {"gpt-2", "llama-bpe", "qwen2", "smollm", "sentencepiece"}) {
    CAPTURE(name);
    const Vocabulary written = load_vocabulary(tokenizer_fixture(name));
    const Vocabulary read = load_vocabulary(write_gguf(directory / (std::string(name) + ".gguf"), written));
    check_same(read, written);
  }
}

TEST_CASE("vocabulary: the digest depends on everything in it") {
  const Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("gpt-2"));
  const auto changed = [&](auto&& change) {
    Vocabulary other = vocabulary;
    change(other);
    return digest(other) != digest(vocabulary);
  };
  CHECK_FALSE(changed([](Vocabulary&) {}));
  CHECK(changed([](Vocabulary& other) { other.chat_template += " "; }));
  CHECK(changed([](Vocabulary& other) { other.add_bos = !other.add_bos; }));
  CHECK(changed([](Vocabulary& other) { other.eos = 1234; }));
  CHECK(changed([](Vocabulary& other) { other.pre = "other"; }));
  CHECK(changed([](Vocabulary& other) { other.types.back() = TokenType::kUserDefined; }));
  CHECK(changed([](Vocabulary& other) { std::swap(other.merges.front(), other.merges.back()); }));
  CHECK(changed([](Vocabulary& other) {  // the same text, cut elsewhere
    other.tokens[0] += other.tokens[1];
    other.tokens[1].clear();
  }));
}

TEST_CASE("vocabulary: GGUF keys have the types that llama.cpp insists on") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  vocabulary.chat_template = "T";
  GgufMetadata metadata;
  write_gguf_keys(vocabulary, metadata);
  const auto array = [&](const char* key) { return std::get<GgufArray>(*metadata.find(key)).values; };
  CHECK(std::get<std::string>(*metadata.find("tokenizer.ggml.model")) == "llama");
  CHECK(std::get<std::string>(*metadata.find("tokenizer.ggml.pre")) == "default");
  CHECK(std::holds_alternative<std::vector<std::string>>(array("tokenizer.ggml.tokens")));
  CHECK(std::holds_alternative<std::vector<float>>(array("tokenizer.ggml.scores")));
  CHECK(std::holds_alternative<std::vector<int32_t>>(array("tokenizer.ggml.token_type")));
  CHECK(std::get<uint32_t>(*metadata.find("tokenizer.ggml.bos_token_id")) == 1);
  CHECK(std::get<uint32_t>(*metadata.find("tokenizer.ggml.eos_token_id")) == 2);
  CHECK(std::get<uint32_t>(*metadata.find("tokenizer.ggml.unknown_token_id")) == 0);
  CHECK(std::get<bool>(*metadata.find("tokenizer.ggml.add_bos_token")));
  CHECK_FALSE(std::get<bool>(*metadata.find("tokenizer.ggml.add_eos_token")));
  CHECK(std::get<bool>(*metadata.find("tokenizer.ggml.add_space_prefix")));
  CHECK(std::get<std::string>(*metadata.find("tokenizer.chat_template")) == "T");
  CHECK_FALSE(metadata.contains("tokenizer.ggml.merges"));

  GgufMetadata byte_level;
  write_gguf_keys(load_vocabulary(tokenizer_fixture("smollm")), byte_level);
  CHECK(std::get<std::string>(*byte_level.find("tokenizer.ggml.model")) == "gpt2");
  CHECK(std::get<std::string>(*byte_level.find("tokenizer.ggml.pre")) == "smollm");
  CHECK(byte_level.strings("tokenizer.ggml.merges")->size() == 223);
  CHECK_FALSE(byte_level.contains("tokenizer.ggml.scores"));
}

TEST_CASE("vocabulary: GGUF keys that are missing get llama.cpp's defaults") {
  GgufMetadata metadata;
  write_gguf_keys(load_vocabulary(tokenizer_fixture("sentencepiece")), metadata);
  for (const char* key : {"pre", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id",
                          "add_bos_token", "add_eos_token", "add_space_prefix"})
    metadata.erase(std::string("tokenizer.ggml.") + key);
  check_same(read_gguf_keys(metadata), load_vocabulary(tokenizer_fixture("sentencepiece")));
}

TEST_CASE("vocabulary: invalid GGUF keys are refused by name") {
  struct Case {
    const char* name;
    void (*damage)(GgufMetadata&);
    const char* message;
  };
  const Case cases[] = {
      {"unknown model", [](GgufMetadata& m) { m.set("tokenizer.ggml.model", std::string("rwkv")); },
       "tokenizer.ggml.model: unknown tokenizer \"rwkv\"; known: llama, gpt2, bert"},
      {"no tokens", [](GgufMetadata& m) { m.erase("tokenizer.ggml.tokens"); },
       "tokenizer.ggml.tokens: missing"},
      {"no merges", [](GgufMetadata& m) { m.erase("tokenizer.ggml.merges"); },
       "tokenizer.ggml.merges: missing"},
      {"few types",
       [](GgufMetadata& m) { m.set("tokenizer.ggml.token_type", GgufArray{std::vector<int32_t>(3, 1)}); },
       "tokenizer.ggml.token_type: expected 480 values, got 3"},
      {"odd type",
       [](GgufMetadata& m) { m.set("tokenizer.ggml.token_type", GgufArray{std::vector<int32_t>(480, 7)}); },
       "tokenizer.ggml.token_type: token 0 has the unknown type 7"},
      {"id too large", [](GgufMetadata& m) { m.set("tokenizer.ggml.eos_token_id", uint32_t{480}); },
       "tokenizer.ggml.eos_token_id: expected an id below 480, got 480"},
      {"same token twice",
       [](GgufMetadata& m) {
         auto tokens = *m.strings("tokenizer.ggml.tokens");
         tokens[7] = tokens[3];
         m.set("tokenizer.ggml.tokens", GgufArray{tokens});
       },
       "tokens 3 and 7 are the same: \"#\""},
      {"not UTF-8",
       [](GgufMetadata& m) {
         auto tokens = *m.strings("tokenizer.ggml.tokens");
         tokens[7].assign(1, static_cast<char>(0xFF));
         m.set("tokenizer.ggml.tokens", GgufArray{tokens});
       },
       "token 7 is not UTF-8"},
      {"merge of one",
       [](GgufMetadata& m) { m.set("tokenizer.ggml.merges", GgufArray{std::vector<std::string>{"a"}}); },
       "merge 0: expected two tokens with a space between, got \"a\""},
      {"merge of unknown tokens",
       [](GgufMetadata& m) { m.set("tokenizer.ggml.merges", GgufArray{std::vector<std::string>{"q zz"}}); },
       "merge 0: token \"zz\" is not in the vocabulary"},
  };
  for (const Case& wrong : cases) {
    CAPTURE(wrong.name);
    GgufMetadata metadata;
    write_gguf_keys(load_vocabulary(tokenizer_fixture("gpt-2")), metadata);
    wrong.damage(metadata);
    CHECK(message_of([&] { read_gguf_keys(metadata); }) == wrong.message);
  }
  GgufMetadata metadata;
  write_gguf_keys(load_vocabulary(tokenizer_fixture("sentencepiece")), metadata);
  metadata.erase("tokenizer.ggml.scores");
  CHECK(message_of([&] { read_gguf_keys(metadata); }) == "tokenizer.ggml.scores: missing");
}

TEST_CASE("vocabulary: Hugging Face files survive writing and reading, byte for byte the same each time") {
  for (const char* name : kByteLevel) {
    CAPTURE(name);
    const TemporaryDirectory directory;
    const Vocabulary vocabulary = load_vocabulary(tokenizer_fixture(name));
    write_hf_files(vocabulary, directory / "one");
    write_hf_files(vocabulary, directory / "two");
    for (const char* file : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"})
      CHECK(read_text(directory / "one" / file) == read_text(directory / "two" / file));
    const Vocabulary read = load_vocabulary(directory / "one");
    check_same(read, vocabulary);
    CHECK(read.nfc == vocabulary.nfc);
  }
}

TEST_CASE("vocabulary: a sentencepiece vocabulary without a model file is written as one") {
  const TemporaryDirectory directory;
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  vocabulary.sentencepiece_model.clear();
  vocabulary.add_eos = true;
  vocabulary.chat_template = "line\n\"quoted\"";
  write_hf_files(vocabulary, directory.path());
  check_same(load_vocabulary(directory.path()), vocabulary);
}

TEST_CASE("vocabulary: a sentencepiece model's own file is kept as it is") {
  const TemporaryDirectory directory;
  write_hf_files(load_vocabulary(tokenizer_fixture("sentencepiece")), directory.path());
  CHECK(read_text(directory / "tokenizer.model") ==
        read_text(tokenizer_fixture("sentencepiece/tokenizer.model")));
}

TEST_CASE("vocabulary: tokens added to a sentencepiece model are read from the files beside it") {
  const TemporaryDirectory directory;
  fs::copy(tokenizer_fixture("sentencepiece/tokenizer.model"), directory / "tokenizer.model");
  SUBCASE("from tokenizer_config.json") {
    put(directory, "tokenizer_config.json",
        R"({"tokenizer_class": "LlamaTokenizer", "eos_token": "<|end|>", "added_tokens_decoder": {
            "520": {"content": "<|end|>", "special": true}, "521": {"content": "two words", "special": false}}})");
  }
  SUBCASE("from added_tokens.json") {
    put(directory, "added_tokens.json", R"({"<|end|>": 520, "two words": 521})");
    put(directory, "special_tokens_map.json", R"({"eos_token": {"content": "<|end|>"}})");
  }
  const Vocabulary vocabulary = load_vocabulary(directory.path());
  REQUIRE(vocabulary.size() == 522);
  CHECK(vocabulary.types[520] == TokenType::kControl);
  CHECK(vocabulary.types[521] == TokenType::kUserDefined);
  CHECK(vocabulary.tokens[521] == "two\xE2\x96\x81words");
  CHECK(vocabulary.eos == 520);
  CHECK(vocabulary.add_bos);
}

TEST_CASE("vocabulary: chat_template.jinja takes precedence over tokenizer_config.json") {
  const TemporaryDirectory directory;
  put(directory, "tokenizer.json", small_tokenizer_json().dump());
  put(directory, "tokenizer_config.json",
      R"({"eos_token": "<end>", "chat_template": "from the configuration"})");
  CHECK(load_vocabulary(directory.path()).chat_template == "from the configuration");
  put(directory, "chat_template.jinja", "from the file");
  CHECK(load_vocabulary(directory.path()).chat_template == "from the file");
}

TEST_CASE("vocabulary: a gap between ids is filled with unused tokens") {
  const TemporaryDirectory directory;
  auto json = small_tokenizer_json();
  json["added_tokens"][0]["id"] = 5;
  put(directory, "tokenizer.json", json.dump());
  const Vocabulary vocabulary = load_vocabulary(directory.path());
  CHECK(vocabulary.tokens == std::vector<std::string>{"a", "b", "ab", "[PAD3]", "[PAD4]", "<end>"});
  CHECK(vocabulary.types[4] == TokenType::kUnused);
}

TEST_CASE(
    "vocabulary: a sentencepiece model that was converted to tokenizer.json keeps its order of merges") {
  const TemporaryDirectory directory;
  put(directory, "tokenizer.json", R"({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]},
    "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
              "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "ab": 5, "▁": 6, "▁ab": 7},
              "merges": [["a", "b"], ["▁", "ab"]]}})");
  put(directory, "tokenizer_config.json", R"({"bos_token": "<s>"})");
  const Vocabulary vocabulary = load_vocabulary(directory.path());
  CHECK(vocabulary.kind == TokenizerKind::kSentencePiece);
  CHECK(vocabulary.types[0] == TokenType::kUnknown);
  CHECK(vocabulary.types[1] == TokenType::kControl);
  CHECK(vocabulary.types[2] == TokenType::kByte);
  CHECK(vocabulary.scores[5] > vocabulary.scores[7]);
  CHECK(vocabulary.scores[7] > vocabulary.scores[3]);
  CHECK(vocabulary.add_space_prefix);
  CHECK(vocabulary.add_bos);
}

TEST_CASE("vocabulary: invalid tokenizer.json files are refused with the place of the fault") {
  struct Case {
    const char* name;
    std::string text;
    const char* message;  ///< after the file's name
  };
  const auto changed = [](const char* pointer, const char* value) {
    auto json = small_tokenizer_json();
    json[nlohmann::json::json_pointer(pointer)] = nlohmann::json::parse(value);
    return json.dump();
  };
  const Case cases[] = {
      {"empty", "", "not valid JSON: parse error at line 1, column 1: "},
      {"cut off", small_tokenizer_json().dump().substr(0, 40),
       "not valid JSON: parse error at line 1, column 41: "},
      {"nested without end", std::string(5000, '['), "not valid JSON: nested more than 256 deep"},
      {"an array", "[]", "expected a JSON object, got array"},
      {"an empty object", "{}", "model: missing, or of no known type"},
      {"unigram", changed("/model/type", "\"Unigram\""),
       "model: expected byte-level BPE, sentencepiece BPE with byte fallback, or WordPiece, got Unigram"},
      {"no vocabulary", changed("/model/vocab", "[]"), "model.vocab: expected an object of tokens and ids"},
      {"text for an id", changed("/model/vocab/a", "\"x\""),
       "model.vocab: token \"a\": expected an id, got string"},
      {"negative id", changed("/model/vocab/a", "-1"),
       "token \"a\": id -1 is out of range: there are 3 tokens"},
      {"huge id", changed("/model/vocab/a", "2000000000"),
       "model.vocab: token \"a\": id 2000000000 of only 3 tokens"},
      {"same id twice", changed("/model/vocab/b", "0"),
       "model.vocab: tokens \"a\" and \"b\" have the same id 0"},
      {"merges of the wrong type", changed("/model/merges", "{}"),
       "model.merges: expected an array, got object"},
      {"a merge of three", changed("/model/merges/0", R"(["a","b","ab"])"),
       "model.merges[0]: expected \"left right\" or [left, right]"},
      {"pre-tokenizer of an unknown kind", changed("/pre_tokenizer/type", "\"Whitespace\""),
       "model: expected byte-level BPE, sentencepiece BPE with byte fallback, or WordPiece, got BPE"},
      {"pre-tokenizer with an unknown pattern",
       changed("/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false},
          {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})"),
       "pre_tokenizer: unknown: Sequence [Split {\"Regex\":\"x+\"}, ByteLevel]"},
      {"prefix space", changed("/pre_tokenizer/add_prefix_space", "true"),
       "pre_tokenizer: unknown: ByteLevel"},
      {"unknown normalizer", changed("/normalizer", R"({"type": "Lowercase"})"),
       "normalizer: expected none or NFC, got Lowercase"},
      {"added token without content", changed("/added_tokens/0", R"({"id": 3})"),
       "added token: expected an id and a content"},
  };
  for (const Case& wrong : cases) {
    CAPTURE(wrong.name);
    const TemporaryDirectory directory;
    put(directory, "tokenizer.json", wrong.text);
    const std::string message = message_of([&] { load_vocabulary(directory.path()); });
    const std::string expected = (directory / "tokenizer.json").string() + ": " + wrong.message;
    CHECK(message.substr(0, expected.size()) == expected);
  }
  const TemporaryDirectory directory;
  put(directory, "tokenizer.json", changed("/added_tokens/0/id", "1"));
  CHECK(message_of([&] {
          load_vocabulary(directory.path());
        }).find("added token \"<end>\" has the id 1 of token \"b\"") != std::string::npos);
  put(directory, "tokenizer.json", changed("/model/merges", "[]"));
  CHECK(message_of([&] { load_vocabulary(directory.path()); }).find("needs merges, there are none") !=
        std::string::npos);
}

TEST_CASE("vocabulary: invalid sentencepiece files are refused with the byte of the fault") {
  const std::string good = read_text(tokenizer_fixture("sentencepiece/tokenizer.model"));
  const std::string piece = "\x0a\x01x";  // piece { piece: "x" }
  struct Case {
    const char* name;
    std::string bytes;
    const char* message;
  };
  const Case cases[] = {
      {"empty", "", "no pieces: not a sentencepiece model"},
      {"text", "not a model at all", "byte 0: unknown protocol buffer field kind 6"},
      {"zeros", std::string(16, '\0'), "byte 0: not a protocol buffer field"},
      {"endless number", std::string(12, '\xFF'), "byte 10: number of more than 10 bytes"},
      {"cut off", good.substr(0, good.size() - 10), "the file ends too early"},
      {"length beyond the end", fmt::format("\x0a{}", varint(uint64_t{1} << 62)),
       "byte 10: the file ends too early: 4611686018427387904 bytes expected, 0 left"},
      {"piece beyond its message", std::string("\x0a\x03\x0a\x09x"),
       "byte 4: the file ends too early: 9 bytes expected, 1 left"},
      {"score of the wrong kind", std::string("\x0a\x02\x10\x01", 4),
       "byte 2: score: expected protocol buffer field kind 5, got 0"},
      {"unknown piece type", std::string("\x0a\x02\x18\x09"), "byte 2: piece 0: unknown type 9"},
      {"unknown model type", fmt::format("\x0a\x03{}\x12\x02\x18\x09", piece),
       "byte 7: unknown model type 9"},
      {"same piece twice", fmt::format("\x0a\x03{0}\x0a\x03{0}", piece),
       "tokens 0 and 1 are the same: \"x\""},
  };
  for (const Case& wrong : cases) {
    CAPTURE(wrong.name);
    const TemporaryDirectory directory;
    put(directory, "tokenizer.model", wrong.bytes);
    const std::string message = message_of([&] { load_vocabulary(directory.path()); });
    CHECK(message.starts_with((directory / "tokenizer.model").string() + ": "));
    CHECK(message.find(wrong.message) != std::string::npos);
    if (message.find(wrong.message) == std::string::npos) MESSAGE(message);
  }
}

TEST_CASE("vocabulary: every prefix of a sentencepiece model is read or refused") {
  const std::string good = read_text(tokenizer_fixture("sentencepiece/tokenizer.model"));
  size_t n_refused = 0;
  for (size_t n = 0; n < good.size(); n += 7) {
    try {
      parse_sentencepiece_model(std::string_view(good).substr(0, n));
    } catch (const Error&) {
      ++n_refused;
    }
  }
  CHECK(n_refused > 0);
}

TEST_CASE("vocabulary: llama2.c's tokenizer.bin gives the pieces of the model it was made from") {
  const TemporaryDirectory directory;
  Vocabulary expected = load_vocabulary(tokenizer_fixture("sentencepiece"));
  put(directory, "tok520.bin", llama2c_bytes(expected));
  put(directory, "model.bin", "not looked into");
  check_same(load_vocabulary(directory / "model.bin"), expected);
  CHECK(load_vocabulary(directory / "model.bin").sentencepiece_model.empty());
}

TEST_CASE("vocabulary: invalid llama2.c files are refused with the byte of the fault") {
  const std::string good = llama2c_bytes(load_vocabulary(tokenizer_fixture("sentencepiece")));
  struct Case {
    const char* name;
    std::string bytes;
    const char* message;
  };
  std::string negative = good;
  negative.replace(8, 4, "\xFF\xFF\xFF\xFF");
  std::string wild = good;
  wild.replace(0, 4, "\xFF\xFF\xFF\x7F");
  const Case cases[] = {
      {"empty", "", "byte 0: length of the longest token: the file ends too early: 4 bytes expected, 0 left"},
      {"only a length", good.substr(0, 4), "0 tokens: not a llama2.c tokenizer"},
      {"cut off in a score", good.substr(0, 6),
       "byte 4: token 0: the file ends too early: 4 bytes expected, 2 left"},
      {"cut off in a token", good.substr(0, 14),
       "byte 12: token 0: the file ends too early: 5 bytes expected, 2 left"},
      {"negative length", negative, "byte 8: token 0: expected a length from 1 to"},
      {"huge longest token", wild, "byte 0: expected the length of the longest token, got 2147483647"},
  };
  for (const Case& wrong : cases) {
    CAPTURE(wrong.name);
    const TemporaryDirectory directory;
    put(directory, "tokenizer.bin", wrong.bytes);
    const std::string expected = (directory / "tokenizer.bin").string() + ": " + wrong.message;
    CHECK(message_of([&] { load_vocabulary(directory.path()); }).substr(0, expected.size()) == expected);
  }
}

TEST_CASE("vocabulary: it is found in a directory, beside a file, or at a given path") {
  const TemporaryDirectory directory;
  const fs::path model = directory / "model.bin";
  put(directory, "model.bin", "not looked into");
  CHECK_FALSE(find_vocabulary(model).has_value());
  CHECK_FALSE(find_vocabulary(directory.path()).has_value());
  CHECK(message_of([&] { load_vocabulary(model); }) == model.string() + ": no tokenizer in or beside it");
  CHECK(hint_of([&] { load_vocabulary(model); }).find("--tokenizer") != std::string::npos);

  const fs::path fixture = tokenizer_fixture("sentencepiece/tokenizer.model");
  for (const fs::path& named : {fixture, fixture.parent_path()})
    CHECK(load_vocabulary(model, named).size() == 520);
  CHECK(load_vocabulary(model, tokenizer_fixture("qwen2/tokenizer.json")).size() == 481);
  write_gguf(directory / "other.gguf", load_vocabulary(tokenizer_fixture("gpt-2")));
  CHECK(load_vocabulary(model, directory / "other.gguf").size() == 480);

  fs::copy(fixture, directory / "tok520.model");
  CHECK(load_vocabulary(model).size() == 520);
  fs::copy(fixture, directory / "tok521.model");
  CHECK(message_of([&] { load_vocabulary(model); }) ==
        directory.path().string() + ": several tokenizers: tok520.model and tok521.model");

  CHECK(message_of([&] { load_vocabulary(directory / "gone"); }) ==
        (directory / "gone").string() + ": no such file or directory");
  CHECK(message_of([&] { load_vocabulary(model, directory / "gone"); }) ==
        (directory / "gone").string() + ": no such file or directory");
  put(directory, "notes.txt", "text");
  CHECK(message_of([&] { load_vocabulary(model, directory / "notes.txt"); }) ==
        (directory / "notes.txt").string() + ": not a tokenizer file");
}

TEST_CASE("vocabulary: a GGUF without a tokenizer has none") {
  const TemporaryDirectory directory;
  GgufMetadata metadata;
  metadata.set("general.architecture", std::string("llama"));
  GgufWriter(directory / "model.gguf", metadata, {}).finish();
  CHECK_FALSE(find_vocabulary(directory / "model.gguf").has_value());
  metadata.set("tokenizer.ggml.model", std::string("no_vocab"));
  GgufWriter(directory / "model.gguf", metadata, {}).finish();
  CHECK_FALSE(find_vocabulary(directory / "model.gguf").has_value());
}

TEST_CASE("vocabulary: padding adds unused tokens up to the rows of the embedding") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  pad_vocabulary(vocabulary, 576);
  CHECK(vocabulary.size() == 576);
  CHECK(vocabulary.tokens[575] == "[PAD575]");
  CHECK(vocabulary.types[575] == TokenType::kUnused);
  CHECK(vocabulary.scores.size() == 576);
  CHECK(message_of([&] { pad_vocabulary(vocabulary, 575); }) ==
        "the vocabulary has 576 tokens, the model only 575");
}

TEST_CASE("vocabulary: token_text() gives the bytes of text that a token stands for") {
  Vocabulary spm;
  spm.tokens = {"<unk>", "<s>", "<0x0A>", "\xE2\x96\x81the", "<mark>", "[PAD]"};
  spm.types = {TokenType::kUnknown, TokenType::kControl,     TokenType::kByte,
               TokenType::kNormal,  TokenType::kUserDefined, TokenType::kUnused};
  const char* const expected[] = {"", "", "\n", " the", "<mark>", ""};
  for (int64_t id = 0; id < spm.size(); ++id) CHECK(token_text(spm, id) == expected[id]);
  CHECK(message_of([&] { token_text(spm, 6); }) == "token id 6 is not in the vocabulary of 6 tokens");
  CHECK(message_of([&] { token_text(spm, -1); }) == "token id -1 is not in the vocabulary of 6 tokens");

  Vocabulary bpe;
  bpe.kind = TokenizerKind::kByteLevelBpe;
  bpe.tokens = {"\xC4\xA0the", "\xC3\xA9", "two words"};
  bpe.types = {TokenType::kNormal, TokenType::kNormal, TokenType::kUserDefined};
  CHECK(token_text(bpe, 0) == " the");
  CHECK(token_text(bpe, 1) == "\xE9");
  CHECK(token_text(bpe, 2) == "two words");
}

TEST_CASE("vocabulary: a unigram model is not written to GGUF, whose readers would take it for BPE") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  vocabulary.sentencepiece_model += std::string("\x12\x02\x18\x01");  // trainer_spec { model_type: UNIGRAM }
  GgufMetadata metadata;
  CHECK(message_of([&] {
          write_gguf_keys(vocabulary, metadata);
        }).starts_with("the sentencepiece model is not of type BPE"));
}

TEST_CASE("vocabulary: WordPiece is read, but has no encoder") {
  const TemporaryDirectory directory;
  put(directory, "tokenizer.json", R"({"model": {"type": "WordPiece",
      "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "play": 4, "##ing": 5}}})");
  put(directory, "tokenizer_config.json",
      R"({"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"})");
  const Vocabulary vocabulary = load_vocabulary(directory.path());
  CHECK(vocabulary.kind == TokenizerKind::kWordPiece);
  CHECK(vocabulary.tokens[4] == "\xE2\x96\x81play");
  CHECK(vocabulary.tokens[5] == "ing");
  CHECK(vocabulary.bos == 2);
  CHECK(vocabulary.eos == 3);
  CHECK(message_of([&] { make_tokenizer(vocabulary); }) == "no encoder for WordPiece vocabularies");
  GgufMetadata metadata;
  write_gguf_keys(vocabulary, metadata);
  check_same(read_gguf_keys(metadata), vocabulary);
}

TEST_CASE("vocabulary: published .bin and .model files of one tokenizer hold the same pieces and scores") {
  if (!has_shared_data()) return;
  for (const char* name : {"stories260K/tok512", "stories3M/tok4096", "llama2-tokenizer/tokenizer"}) {
    CAPTURE(name);
    const fs::path stem = shared_data() / "models" / name;
    check_same(load_vocabulary("/", stem.string() + ".bin"), load_vocabulary("/", stem.string() + ".model"));
  }
}

TEST_CASE("vocabulary: published GGUF vocabularies are read") {
  if (!has_shared_data()) return;
  const fs::path folder = shared_data() / "models/gguf-vocab";
  const Vocabulary bert = load_vocabulary(folder / "ggml-vocab-bert-bge.gguf");
  CHECK(bert.kind == TokenizerKind::kWordPiece);
  CHECK(bert.size() == 30522);
  CHECK(bert.bos == 101);
  CHECK(bert.eos == 102);
  CHECK(message_of([&] { make_tokenizer(bert); }) == "no encoder for WordPiece vocabularies");
  CHECK(load_vocabulary(folder / "ggml-vocab-gpt-2.gguf").merges.size() == 50000);
  check_same(load_vocabulary(folder / "ggml-vocab-llama-spm.gguf"),
             load_vocabulary(shared_data() / "models/llama2-tokenizer/tokenizer.model"));
}
