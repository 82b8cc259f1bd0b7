#include "data/byte_level_bpe.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "tokenizer_fixtures.h"

using namespace elastify;
using namespace elastify::test;

namespace {

const char* const kFixtures[] = {"gpt-2", "llama-bpe", "qwen2", "smollm"};

std::vector<std::string> split(std::string_view pre, std::string_view text) {
  const auto pieces = PreTokenizer(pre_tokenizer_patterns(pre)).split(text);
  return {pieces.begin(), pieces.end()};
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("byte-level BPE: ids are those of Hugging Face tokenizers") {
  const std::vector<std::string> texts = fixture_texts();
  for (const char* name : kFixtures) {
    const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture(name)));
    const std::vector<Ids> expected = fixture_ids(name);
    REQUIRE(expected.size() == texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(name);
      CAPTURE(texts[i]);
      CHECK(tokenizer->encode(texts[i]) == expected[i]);
    }
    CHECK(tokenizer->encode_all(texts) == expected);
  }
}

TEST_CASE("byte-level BPE: a vocabulary that went through GGUF encodes the same") {
  for (const char* name : {"gpt-2", "llama-bpe", "smollm"}) {
    CAPTURE(name);
    GgufMetadata metadata;
    write_gguf_keys(load_vocabulary(tokenizer_fixture(name)), metadata);
    CHECK(make_tokenizer(read_gguf_keys(metadata))->encode_all(fixture_texts()) == fixture_ids(name));
  }
}

TEST_CASE("byte-level BPE: decoding gives the text back") {
  for (const char* name : {"gpt-2", "llama-bpe", "smollm"}) {
    const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture(name)));
    for (const std::string& text : fixture_texts()) CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
}

TEST_CASE("byte-level BPE: bytes that are not UTF-8 are encoded as bytes") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("qwen2")));
  for (const std::string& text :
       {std::string("\xFF"), std::string("caf\xC3"), std::string("\x80\x80 word \xF0\x9F\x9A"),
        std::string("\xED\xA0\x80x"), std::string("a\0\xC0\x80", 4)}) {
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
}

TEST_CASE("byte-level BPE: a word of 200,000 bytes is encoded in a moment") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("gpt-2")));
  std::string word;
  for (int i = 0; i < 200000; ++i) word += "theseawas"[i % 9];
  const Ids ids = tokenizer->encode(word);
  CHECK(ids.size() < word.size());
  CHECK(tokenizer->decode(ids) == word);
}

TEST_CASE("byte-level BPE: control tokens are not found in text, and decode to nothing") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("gpt-2")));
  const Ids ids = tokenizer->encode("<|endoftext|>");
  CHECK(ids.size() > 1);
  CHECK(std::find(ids.begin(), ids.end(), 0) == ids.end());
  CHECK(tokenizer->decode({0}).empty());
  CHECK(message_of([&] { tokenizer->decode({480}); }) ==
        "token id 480 is not in the vocabulary of 480 tokens");
}

TEST_CASE("byte-level BPE: the longest matching user-defined token is found") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("gpt-2"));
  for (const char* token : {"<m>", "<m><m>", "m>"}) {
    vocabulary.tokens.emplace_back(token);
    vocabulary.types.push_back(TokenType::kUserDefined);
  }
  const auto tokenizer = make_tokenizer(std::move(vocabulary));
  const Ids a = tokenizer->encode("a");
  CHECK(tokenizer->encode("<m><m><m>a") == Ids{481, 480, a[0]});
  CHECK(tokenizer->encode("m>") == Ids{482});
  CHECK(tokenizer->decode({481, 482}) == "<m><m>m>");
}

TEST_CASE("byte-level BPE: a byte without a token is left out") {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kByteLevelBpe;
  vocabulary.pre = "gpt-2";
  vocabulary.tokens = {"a", "b", "ab"};
  vocabulary.types.assign(3, TokenType::kNormal);
  vocabulary.merges = {"a b"};
  const auto tokenizer = make_tokenizer(vocabulary);
  CHECK(tokenizer->encode("aabxba") == Ids{0, 2, 1, 0});
  CHECK(tokenizer->encode("xyz").empty());
}

TEST_CASE("byte-level BPE: the best merge is applied first, and the leftmost of equal ones") {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kByteLevelBpe;
  vocabulary.pre = "gpt-2";
  vocabulary.tokens = {"a", "b", "c", "bc", "ab", "aa", "abc"};
  vocabulary.types.assign(7, TokenType::kNormal);
  vocabulary.merges = {"b c", "a b", "a a", "ab c"};
  const auto tokenizer = make_tokenizer(vocabulary);
  CHECK(tokenizer->encode("abc") == Ids{0, 3});
  CHECK(tokenizer->encode("aaa") == Ids{5, 0});
  CHECK(tokenizer->encode("aab") == Ids{0, 4});
}

TEST_CASE("byte-level BPE: every byte survives GPT-2's notation") {
  std::string bytes;
  for (int b = 0; b < 256; ++b) bytes.push_back(static_cast<char>(b));
  CHECK(to_byte_notation(" a\n") ==
        "\xC4\xA0"
        "a\xC4\x8A");
  CHECK(from_byte_notation(to_byte_notation(bytes)) == bytes);
  CHECK(from_byte_notation("\xE2\x96\x81") == "\xE2\x96\x81");
}

TEST_CASE("pre-tokenizer: text is cut into words as each model does it") {
  CHECK(split("gpt-2", "I'm 123  x!\n\n") == Words{"I", "'m", " 123", " ", " x", "!", "\n\n"});
  CHECK(split("smollm", "I'm 123  x!") == Words{"I", "'m", " ", "1", "2", "3", " ", " x", "!"});
  CHECK(split("llama-bpe", "I'M 1234  x!\n\n y") ==
        Words{"I", "'M", " ", "123", "4", " ", " x", "!\n\n", " y"});
  CHECK(split("qwen2", "I'M 12 x!\n") == Words{"I", "'M", " ", "1", "2", " x", "!\n"});
  CHECK(split("default", "a+b 1234") == Words{"a", "+", "b", " ", "123", "4"});
  CHECK(split("gpt-2", "").empty());
}

TEST_CASE("pre-tokenizer: an unknown name is refused, and the known ones are listed") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("gpt-2"));
  vocabulary.pre = "tekken";
  const std::string message = message_of([&] { make_tokenizer(vocabulary); });
  CHECK(message.starts_with(
      "unknown pre-tokenizer \"tekken\"; known: gpt-2, llama-bpe, qwen2, smollm, default"));
  CHECK(message_of([] { PreTokenizer({"(a"}); }).starts_with("pre-tokenizer pattern (a: character 2: "));
}

TEST_CASE("byte-level BPE: llama.cpp's test strings for GPT-2 are encoded as there") {
  if (!has_shared_data()) return;
  const fs::path gguf = shared_data() / "models/gguf-vocab/ggml-vocab-gpt-2.gguf";
  const TestVectors vectors = read_test_vectors(gguf);
  REQUIRE(vectors.texts.size() == 46);
  const auto tokenizer = make_tokenizer(load_vocabulary(gguf));
  for (size_t i = 0; i < vectors.texts.size(); ++i) {
    CAPTURE(vectors.texts[i]);
    CHECK(tokenizer->encode(vectors.texts[i]) == vectors.ids[i]);
    CHECK(tokenizer->decode(vectors.ids[i]) == vectors.texts[i]);
  }
}
