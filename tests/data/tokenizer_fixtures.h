#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/vocabulary.h"
#include "data/vocabulary_checks.h"

namespace elastify::test {

using Ids = std::vector<int32_t>;

/// tests/data/tokenizers: small tokenizers, texts, and the ids that independent implementations give them.
inline fs::path tokenizer_fixture(const std::string& name) {
  return fs::path(ELASTIFY_SOURCE_DIR) / "tests/data/tokenizers" / name;
}

inline nlohmann::json fixture_json(const std::string& name) {
  return nlohmann::json::parse(read_text(tokenizer_fixture(name)));
}

inline std::vector<std::string> fixture_texts() {
  return fixture_json("texts.json");
}
inline std::vector<Ids> fixture_ids(const std::string& name) {
  return fixture_json(name + "/ids.json");
}

inline void check_same(const Vocabulary& a, const Vocabulary& b) {
  CHECK(a.kind == b.kind);
  CHECK(a.pre == b.pre);
  CHECK(a.tokens == b.tokens);
  CHECK(a.scores == b.scores);
  CHECK(a.types == b.types);
  CHECK(a.merges == b.merges);
  CHECK(a.ignore_merges == b.ignore_merges);
  CHECK(a.bos == b.bos);
  CHECK(a.eos == b.eos);
  CHECK(a.unknown == b.unknown);
  CHECK(a.padding == b.padding);
  CHECK(a.add_bos == b.add_bos);
  CHECK(a.add_eos == b.add_eos);
  CHECK(a.add_space_prefix == b.add_space_prefix);
  CHECK(a.chat_template == b.chat_template);
}

/// llama2.c's tokenizer.bin for a sentencepiece vocabulary, as its exporter writes it.
inline std::string llama2c_bytes(const Vocabulary& vocabulary) {
  std::string body;
  int32_t longest = 0;
  const auto put = [](std::string& bytes, auto value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    longest = std::max(longest, static_cast<int32_t>(vocabulary.tokens[i].size()));
    std::string token = replace_all(vocabulary.tokens[i], kSpaceSign, " ");
    if (i == 1 || i == 2) token = fmt::format("\n{}\n", token);
    put(body, vocabulary.scores[i]);
    put(body, static_cast<int32_t>(token.size()));
    body += token;
  }
  std::string bytes;
  put(bytes, longest);
  return bytes + body;
}

/// Test strings of llama.cpp and their ids.
struct TestVectors {
  std::vector<std::string> texts;
  std::vector<Ids> ids;
};
inline TestVectors read_test_vectors(const fs::path& gguf) {
  TestVectors vectors;
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string text = read_text(gguf.string() + ".inp");
  for (size_t begin = 0, end; (end = text.find(separator, begin)) != std::string::npos;
       begin = end + separator.size())
    vectors.texts.push_back(text.substr(begin, end - begin));
  std::ifstream lines(gguf.string() + ".out");
  for (std::string line; std::getline(lines, line);) {
    std::istringstream numbers(line);
    vectors.ids.emplace_back();
    for (int32_t id; numbers >> id;) vectors.ids.back().push_back(id);
  }
  vectors.ids.resize(vectors.texts.size());  // a last empty line is not a vector
  return vectors;
}

}  // namespace elastify::test
