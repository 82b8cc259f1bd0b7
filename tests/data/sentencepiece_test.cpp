#include <doctest/doctest.h>
#include <signal.h>
#include <stdlib.h>

#include <cerrno>
#include <thread>

#include "base/error.h"
#include "data/sentencepiece_client.h"
#include "data/sentencepiece_model.h"
#include "data/tokenizer.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "tokenizer_fixtures.h"

using namespace elastify;
using namespace elastify::test;

namespace {

std::string fixture_model() {
  return read_text(tokenizer_fixture("sentencepiece/tokenizer.model"));
}

/// Sets ELASTIFY_SPM for as long as the object lives.
class HelperOverride {
 public:
  explicit HelperOverride(const std::string& path) {
    if (const char* old = ::getenv("ELASTIFY_SPM")) old_ = old;
    ::setenv("ELASTIFY_SPM", path.c_str(), 1);
  }
  ~HelperOverride() {
    if (old_.empty()) {
      ::unsetenv("ELASTIFY_SPM");
    } else {
      ::setenv("ELASTIFY_SPM", old_.c_str(), 1);
    }
  }

 private:
  std::string old_;
};

void write_script(const fs::path& path, const std::string& text) {
  write_text(path, fmt::format("#!/bin/sh\n{}\n", text));
  fs::permissions(path, fs::perms::owner_all);
}

}  // namespace

TEST_CASE("sentencepiece: ids are those of the sentencepiece package") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("sentencepiece")));
  const std::vector<std::string> texts = fixture_texts();
  const std::vector<Ids> expected = fixture_ids("sentencepiece");
  REQUIRE(expected.size() == texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    CAPTURE(texts[i]);
    CHECK(tokenizer->encode(texts[i]) == expected[i]);
    CHECK(tokenizer->decode(expected[i]) == texts[i]);
  }
  CHECK(tokenizer->encode_all(texts) == expected);
  CHECK(tokenizer->encode_all({}).empty());
}

TEST_CASE("sentencepiece: a vocabulary without a model file encodes the same") {
  GgufMetadata metadata;
  write_gguf_keys(load_vocabulary(tokenizer_fixture("sentencepiece")), metadata);
  const Vocabulary from_gguf = read_gguf_keys(metadata);
  CHECK(from_gguf.sentencepiece_model.empty());
  CHECK(make_tokenizer(from_gguf)->encode_all(fixture_texts()) == fixture_ids("sentencepiece"));

  const TemporaryDirectory directory;
  write_text(directory / "tokenizer.bin", llama2c_bytes(from_gguf));
  CHECK(make_tokenizer(load_vocabulary(directory.path()))->encode_all(fixture_texts()) ==
        fixture_ids("sentencepiece"));
}

TEST_CASE("sentencepiece: without a space prefix, none is encoded") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  vocabulary.sentencepiece_model.clear();
  vocabulary.add_space_prefix = false;
  const auto tokenizer = make_tokenizer(vocabulary);
  CHECK_FALSE(tokenizer->vocabulary().tokens[static_cast<size_t>(tokenizer->encode("the")[0])].starts_with(
      "\xE2\x96\x81"));
  CHECK(tokenizer->decode(tokenizer->encode(" the sea")) == " the sea");
}

TEST_CASE("sentencepiece: encoding the lines of a text gives the ids of the whole text") {
  const std::string model = fixture_model();
  REQUIRE(parse_sentencepiece_model(model).lines_are_independent());
  std::string text = "\n\n  first";
  for (int i = 0; i < 150; ++i) {
    for (const std::string& part : fixture_texts())
      text += part + (i % 3 == 0 ? "\n" : i % 3 == 1 ? "\n\n " : " ");
  }
  SentencePieceClient cut(model, true);
  SentencePieceClient whole(model, false);
  const std::vector<std::string_view> texts = {text, "", "\n", std::string_view(text).substr(1), text};
  const auto ids = cut.encode(texts);
  CHECK(ids == whole.encode(texts));
  CHECK(ids[0] == ids[4]);
  CHECK(ids[0].size() > 50000);
}

TEST_CASE("sentencepiece: lines of a model that trims or rewrites text are not independent") {
  const std::string model = fixture_model();
  const auto with = [&](std::string_view fields) {
    const std::string message = std::string("\x1a") + static_cast<char>(fields.size()) + std::string(fields);
    return parse_sentencepiece_model(model + message).lines_are_independent();
  };
  CHECK(with(""));
  CHECK_FALSE(with(std::string_view("\x20\x01", 2)));   // remove_extra_whitespaces
  CHECK_FALSE(with(std::string_view("\x12\x01x", 3)));  // precompiled_charsmap
  CHECK_FALSE(with(std::string_view("\x28\x00", 2)));   // escape_whitespaces: false
  CHECK_FALSE(parse_sentencepiece_model(model + "\x0a\x06\x0a\x04"
                                                "a\n b")
                  .lines_are_independent());
}

TEST_CASE("sentencepiece: zero bytes and bytes that are not UTF-8 are harmless") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("sentencepiece")));
  const std::string zero("a\0b\0", 4);
  CHECK(tokenizer->decode(tokenizer->encode(zero)) == zero);
  CHECK(tokenizer->encode("x\xFFy") == tokenizer->encode("x\xEF\xBF\xBDy"));
}

TEST_CASE("sentencepiece: tokens added to a model are encoded too") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"<mark>", "<control>"});
  vocabulary.types.insert(vocabulary.types.end(), {TokenType::kUserDefined, TokenType::kControl});
  vocabulary.scores.insert(vocabulary.scores.end(), {0, 0});
  pad_vocabulary(vocabulary, 530);
  const auto tokenizer = make_tokenizer(vocabulary);
  const Ids marked = tokenizer->encode("the<mark>the");
  CHECK(std::count(marked.begin(), marked.end(), 520) == 1);
  CHECK(tokenizer->decode(marked) == "the<mark>the");
  const Ids control = tokenizer->encode("<control>");
  CHECK(std::count(control.begin(), control.end(), 521) == 0);
  CHECK(tokenizer->decode({521}).empty());
}

TEST_CASE("sentencepiece: a batch larger than any buffer goes through") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("sentencepiece")));
  const std::string line = "The sea was calm. The sea was grey, and 12 boats came home.\n";
  std::string text;
  while (text.size() < 100000) text += line;
  const std::vector<std::string> texts(60, text);
  const auto ids = tokenizer->encode_all(texts);
  REQUIRE(ids.size() == texts.size());
  for (const Ids& one : ids) CHECK(one == ids[0]);
  CHECK(tokenizer->decode(ids[0]) == text);
}

TEST_CASE("sentencepiece: one tokenizer may be used from several threads") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("sentencepiece")));
  const std::vector<std::string> texts = fixture_texts();
  const std::vector<Ids> expected = fixture_ids("sentencepiece");
  std::vector<int> n_wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& wrong : n_wrong) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < texts.size(); ++i) wrong += tokenizer->encode(texts[i]) != expected[i];
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(n_wrong == std::vector<int>(4, 0));
}

TEST_CASE("sentencepiece: ids outside the vocabulary are refused") {
  const auto tokenizer = make_tokenizer(load_vocabulary(tokenizer_fixture("sentencepiece")));
  CHECK(message_of([&] { tokenizer->decode({520}); }) ==
        "token id 520 is not in the vocabulary of 520 tokens");
  CHECK(message_of([&] { tokenizer->decode({-1}); }) == "token id -1 is not in the vocabulary of 520 tokens");
  CHECK(tokenizer->decode({}).empty());
}

TEST_CASE("sentencepiece: a model that the library rejects is an error with its reason") {
  Vocabulary vocabulary = load_vocabulary(tokenizer_fixture("sentencepiece"));
  vocabulary.sentencepiece_model.clear();
  vocabulary.types[0] = TokenType::kNormal;
  vocabulary.unknown.reset();
  CHECK(message_of([&] { make_tokenizer(vocabulary); }).starts_with("sentencepiece: loading the model: "));
  CHECK(message_of([] {
          SentencePieceClient("garbage", false);
        }).starts_with("sentencepiece: loading the model: "));
}

TEST_CASE("sentencepiece: a helper that dies is an error, not the end of the program") {
  SentencePieceClient client(fixture_model(), true);
  CHECK(client.encode({"the sea"}).size() == 1);
  REQUIRE(::kill(client.process(), SIGKILL) == 0);
  const std::string message = message_of([&] {
    client.encode({"the sea"});
    client.encode({"the sea"});
  });
  CHECK(message.find("was ended by signal 9 (Killed) while encoding") != std::string::npos);
  CHECK(message_of([&] { client.encode({"the sea"}); }).find("stopped after an earlier error") !=
        std::string::npos);
}

TEST_CASE("sentencepiece: no process is left behind") {
  pid_t process = 0;
  {
    SentencePieceClient client(fixture_model(), true);
    process = client.process();
    CHECK(::kill(process, 0) == 0);
  }
  CHECK(::kill(process, 0) == -1);
  CHECK(errno == ESRCH);
}

TEST_CASE("sentencepiece: the error about a failing helper names it and quotes its last line") {
  const TemporaryDirectory directory;
  const fs::path script = directory / "helper";
  const auto message = [&] { return message_of([] { SentencePieceClient(fixture_model(), true); }); };
  const HelperOverride override_helper(script.string());

  CHECK(message() == script.string() + ": not an executable file");
  write_script(script, "echo first >&2; echo the last words >&2; exit 3");
  CHECK(message() == script.string() + ": ended with exit status 3 while loading the model: the last words");
  write_script(script, "exec cat");
  CHECK(message().find(": sent a broken reply while loading the model") != std::string::npos);
  // The script takes the request, too. If it ended first, the client would report a dead helper.
  write_script(script, "printf '\\001\\000\\000\\000\\000\\000\\000\\000\\000'; exec cat >/dev/null");
  CHECK(message().find(": sent a broken reply while loading the model") != std::string::npos);
}

TEST_CASE("sentencepiece: published .bin and .model files of one tokenizer give the same ids") {
  if (!has_shared_data()) return;
  // Only texts without doubled or outer spaces: the stories models' .model files remove these, .bin files
  // cannot.
  std::vector<std::string> texts;
  std::ifstream file(shared_data() / "datasets/tinystories/tinystories_v2gpt4_10k_lines.txt");
  for (std::string line; std::getline(file, line) && texts.size() < 1000;) {
    if (line.find("  ") == std::string::npos && !line.empty() && line.front() != ' ' && line.back() != ' ')
      texts.push_back(line);
  }
  for (const char* name : {"stories260K/tok512", "stories3M/tok4096", "llama2-tokenizer/tokenizer"}) {
    CAPTURE(name);
    const fs::path stem = shared_data() / "models" / name;
    const auto from_bin = make_tokenizer(load_vocabulary("/", stem.string() + ".bin"));
    const auto from_model = make_tokenizer(load_vocabulary("/", stem.string() + ".model"));
    const auto ids = from_model->encode_all(texts);
    CHECK(from_bin->encode_all(texts) == ids);
    CHECK(from_bin->decode(ids[0]) == texts[0]);
  }
}

TEST_CASE("sentencepiece: llama.cpp's test strings for Llama are encoded as there") {
  if (!has_shared_data()) return;
  const fs::path gguf = shared_data() / "models/gguf-vocab/ggml-vocab-llama-spm.gguf";
  const TestVectors vectors = read_test_vectors(gguf);
  REQUIRE(vectors.texts.size() == 46);
  const auto tokenizer = make_tokenizer(load_vocabulary(gguf));
  for (size_t i = 0; i < vectors.texts.size(); ++i) {
    CAPTURE(vectors.texts[i]);
    CHECK(tokenizer->encode(vectors.texts[i]) == vectors.ids[i]);
    CHECK(tokenizer->decode(vectors.ids[i]) == vectors.texts[i]);
  }
}
