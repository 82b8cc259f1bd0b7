#include "data/corpus.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "tokenizer_fixtures.h"

using namespace elastify;
using namespace elastify::test;

namespace {

using Documents = std::vector<std::string>;

Documents load(const TemporaryDirectory& directory, const char* name, const std::string& text) {
  write_text(directory / name, text);
  return load_documents({directory / name});
}

std::unique_ptr<Tokenizer> byte_level() {
  return make_tokenizer(load_vocabulary(tokenizer_fixture("gpt-2")));
}
std::unique_ptr<Tokenizer> sentencepiece() {
  return make_tokenizer(load_vocabulary(tokenizer_fixture("sentencepiece")));
}

size_t n_bytes_of(const Documents& documents) {
  size_t n = 0;
  for (const std::string& document : documents) n += document.size();
  return n;
}

}  // namespace

TEST_CASE("corpus: a text file is one document, cut at lines that hold only <|endoftext|>") {
  const TemporaryDirectory directory;
  CHECK(load(directory, "a.txt", "one\ntwo\n") == Documents{"one\ntwo\n"});
  CHECK(load(directory, "a.raw", "\n = Title = \n\n text\n") == Documents{"\n = Title = \n\n text\n"});
  CHECK(load(directory, "a.txt", "one\ntwo\n<|endoftext|>\n\nthree\n<|endoftext|>\n") ==
        Documents{"one\ntwo", "three"});
  CHECK(load(directory, "a.txt", "<|endoftext|>\n<|endoftext|>\none <|endoftext|> more") ==
        Documents{"one <|endoftext|> more"});
  CHECK(load(directory, "a.txt", "one\n<|endoftext|>") == Documents{"one"});
}

TEST_CASE("corpus: Windows line ends and a byte order mark are removed") {
  const TemporaryDirectory directory;
  CHECK(load(directory, "a.txt", "\xEF\xBB\xBFone\r\ntwo\r\n<|endoftext|>\r\nthree\r") ==
        Documents{"one\ntwo", "three\r"});
  CHECK(load(directory, "a.jsonl", "{\"text\": \"one\"}\r\n\r\n{\"text\": \"two\"}\r\n") ==
        Documents{"one", "two"});
}

TEST_CASE("corpus: JSON documents are their text, or the fields of an instruction") {
  const TemporaryDirectory directory;
  CHECK(load(directory, "a.jsonl", R"({"text": "plain", "meta": {"x": 1}}
{"instruction": "Add.", "input": "1 2", "output": "3"}
{"instruction": "Say hi.", "input": "", "output": "Hi"}
{"prompt": "Q\n", "response": "A"}
{"question": "Q", "answer": "A"}
)") == Documents{"plain", "Add.\n1 2\n3", "Say hi.\nHi", "Q\nA", "Q\nA"});
  CHECK(load(directory, "a.json", R"([{"text": "one"}, {"text": ""}, {"prompt": "a", "response": "b"}])") ==
        Documents{"one", "a\nb"});
}

TEST_CASE("corpus: several files follow each other in the order given") {
  const TemporaryDirectory directory;
  write_text(directory / "b.txt", "second");
  write_text(directory / "a.jsonl", "{\"text\": \"first\"}");
  CHECK(load_documents({directory / "a.jsonl", directory / "b.txt"}) == Documents{"first", "second"});
}

TEST_CASE("corpus: whole documents are held out, every tenth of each file, and none is lost") {
  const TemporaryDirectory directory;
  std::string many, few;
  for (int i = 0; i < 40; ++i) many += fmt::format("{{\"text\": \"many {}\"}}\n", i);
  for (int i = 0; i < 3; ++i) few += fmt::format("{{\"text\": \"few {}\"}}\n", i);
  write_text(directory / "many.jsonl", many);
  write_text(directory / "few.jsonl", few);
  const std::vector<fs::path> files{directory / "many.jsonl", directory / "few.jsonl"};
  PartedDocuments parts = part_documents(files);
  REQUIRE(parts.held_out.size() == 2);
  CHECK(parts.held_out[0] == Documents{"many 9", "many 19", "many 29", "many 39"});
  CHECK(parts.held_out[1] == Documents{"few 2"});
  Documents all = parts.kept;
  for (const Documents& held_out : parts.held_out) all.insert(all.end(), held_out.begin(), held_out.end());
  Documents expected = load_documents(files);
  std::sort(all.begin(), all.end());
  std::sort(expected.begin(), expected.end());
  CHECK(all == expected);
}

TEST_CASE("corpus: a document that is most of its file is cut, so that a piece can be held out") {
  const TemporaryDirectory directory;
  for (const char* end : {"\n", " "}) {
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("word{}{}", i, end);
    write_text(directory / "one.txt", text);
    const PartedDocuments parts = part_documents({directory / "one.txt"});
    REQUIRE(parts.held_out.size() == 1);
    REQUIRE(!parts.held_out[0].empty());
    const double share =
        static_cast<double>(n_bytes_of(parts.held_out[0])) / static_cast<double>(text.size());
    CHECK(share > 0.05);
    CHECK(share < 0.2);
    CHECK(n_bytes_of(parts.held_out[0]) + n_bytes_of(parts.kept) > text.size() - 20);
    for (const std::string& piece : parts.kept) CHECK(piece.starts_with("word"));
  }
  write_text(directory / "short.txt", "a short text");
  const PartedDocuments whole = part_documents({directory / "short.txt"});
  CHECK(whole.kept == Documents{"a short text"});
  CHECK(whole.held_out == std::vector<Documents>{{}});
}

TEST_CASE("corpus: data that is not text is refused with file and line") {
  struct Case {
    const char* file;
    std::string text;
    const char* message;  ///< after the file's name
  };
  const Case cases[] = {
      {"a.txt", "", "holds no text"},
      {"a.txt", " \n\n", "holds no text"},
      {"a.txt", "one\ntwo \xFF\n", "line 2: not UTF-8: byte 0xff"},
      {"a.txt", "one\ntwo\nthree\xC3", "line 3: not UTF-8: byte 0xc3"},
      {"a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xE9\"}\n", "line 2: not UTF-8: byte 0xe9"},
      {"a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \n",
       "line 3: not valid JSON: parse error at line 1, column 10"},
      {"a.jsonl", "{\"text\": \"a\"}\n[1]\n", "line 2: expected a JSON object, got array"},
      {"a.jsonl", "{\"title\": \"a\"}\n", "line 1: no text field"},
      {"a.jsonl", "{\"text\": 5}\n", "line 1: text: expected a string, got number"},
      {"a.jsonl", "{\"text\": \"\"}\n", "holds no text"},
      {"a.jsonl", "{\"text\": \"\\ud800\"}\n", "line 1: not valid JSON: "},
      {"a.json", "{\"text\": \"a\"}", "expected a JSON array, got object"},
      {"a.json", "[{\"text\": \"a\"}, 7]", "entry 2: expected a JSON object, got number"},
  };
  const TemporaryDirectory directory;
  for (const Case& wrong : cases) {
    CAPTURE(wrong.text);
    const std::string expected = (directory / wrong.file).string() + ": " + wrong.message;
    CHECK(message_of([&] { load(directory, wrong.file, wrong.text); }).substr(0, expected.size()) ==
          expected);
  }
  CHECK(message_of([&] {
          load_documents({directory / "gone.txt"});
        }).starts_with((directory / "gone.txt").string()));
}

TEST_CASE("batches: sequences are consecutive pieces of the joined text") {
  const auto tokenizer = byte_level();
  const Documents documents = {"The sea was calm.", "The cat waited for the boats."};
  Ids joined = tokenizer->encode(documents[0]);
  joined.push_back(0);  // <|endoftext|>
  for (const int32_t id : tokenizer->encode(documents[1])) joined.push_back(id);

  const TokenBatches batches = make_batches(*tokenizer, documents, 4, 0, std::nullopt);
  REQUIRE(batches.sequences.size() == joined.size() / 4);
  CHECK(batches.seq_len == 4);
  CHECK(batches.n_tokens() == static_cast<int64_t>(joined.size() / 4 * 4));
  for (size_t i = 0; i < batches.sequences.size(); ++i)
    CHECK(batches.sequences[i] ==
          Ids(joined.begin() + static_cast<long>(i * 4), joined.begin() + static_cast<long>(i * 4 + 4)));
}

TEST_CASE("batches: if the vocabulary adds bos, it stands before each document") {
  const auto tokenizer = sentencepiece();
  const TokenBatches batches = make_batches(*tokenizer, {"a", "b"}, 2, 0, std::nullopt);
  CHECK(batches.sequences[0][0] == 1);
  int64_t n_bos = 0;
  for (const Ids& sequence : batches.sequences) n_bos += std::count(sequence.begin(), sequence.end(), 1);
  CHECK(n_bos == 2);
}

TEST_CASE("batches: n_bytes counts the text of the predicted tokens exactly") {
  const Documents documents = fixture_texts();
  for (const auto& tokenizer : {byte_level(), sentencepiece()}) {
    // All text is in one sequence. Nothing predicts its first token, which is bos or some text.
    int64_t n_tokens = 0;
    for (const Ids& ids : tokenizer->encode_all(documents)) n_tokens += static_cast<int64_t>(ids.size());
    const bool adds_bos = tokenizer->vocabulary().add_bos;
    n_tokens += static_cast<int64_t>(documents.size()) - (adds_bos ? 0 : 2);  // the first document is empty
    const TokenBatches all = make_batches(*tokenizer, documents, n_tokens, 0, std::nullopt);
    REQUIRE(all.sequences.size() == 1);
    const int64_t first =
        static_cast<int64_t>(token_text(tokenizer->vocabulary(), all.sequences[0][0]).size());
    CHECK(all.n_bytes == static_cast<int64_t>(n_bytes_of(documents)) - first);
  }
}

TEST_CASE("batches: max_tokens keeps the first sequences, a seed draws from all of them") {
  const auto tokenizer = byte_level();
  std::string text;
  for (int i = 0; i < 500; ++i) text += "line " + std::to_string(i) + " of the sea\n";
  const TokenBatches all = make_batches(*tokenizer, {text}, 16, 0, std::nullopt);
  const TokenBatches first = make_batches(*tokenizer, {text}, 16, 100, std::nullopt);
  REQUIRE(first.sequences.size() == 6);
  for (size_t i = 0; i < 6; ++i) CHECK(first.sequences[i] == all.sequences[i]);

  const TokenBatches drawn = make_batches(*tokenizer, {text}, 16, 100, 7);
  CHECK(drawn.sequences.size() == 6);
  CHECK(drawn.digest == make_batches(*tokenizer, {text}, 16, 100, 7).digest);
  CHECK(drawn.digest != make_batches(*tokenizer, {text}, 16, 100, 8).digest);
  CHECK(drawn.digest != first.digest);
  const std::set<Ids> pool(all.sequences.begin(), all.sequences.end());
  const std::set<Ids> distinct(drawn.sequences.begin(), drawn.sequences.end());
  CHECK(distinct.size() == 6);
  for (const Ids& sequence : drawn.sequences) CHECK(pool.contains(sequence));

  const TokenBatches shuffled = make_batches(*tokenizer, {text}, 16, 0, 7);
  CHECK(shuffled.n_bytes == all.n_bytes);
  CHECK(std::multiset<Ids>(shuffled.sequences.begin(), shuffled.sequences.end()) ==
        std::multiset<Ids>(all.sequences.begin(), all.sequences.end()));
}

TEST_CASE("batches: too little text or too small a limit is refused") {
  const auto tokenizer = byte_level();
  CHECK(message_of([&] { make_batches(*tokenizer, {"a b"}, 8, 0, std::nullopt); }) ==
        "the text has 2 tokens, less than one sequence of 8");
  CHECK(message_of([&] { make_batches(*tokenizer, {}, 8, 0, std::nullopt); }) ==
        "the text has 0 tokens, less than one sequence of 8");
  CHECK(message_of([&] { make_batches(*tokenizer, {"a b"}, 8, 4, std::nullopt); }) ==
        "at most 4 tokens: less than one sequence of 8");
  CHECK(message_of([&] { make_batches(*tokenizer, {"a b"}, 1, 0, std::nullopt); }) ==
        "sequence length 1: expected at least 2");
}

TEST_CASE("corpus: published texts are loaded whole") {
  if (!has_shared_data()) return;
  const fs::path datasets = shared_data() / "datasets";
  CHECK(load_documents({datasets / "c4-redpajama/sample_c4-rp1.jsonl"}).size() == 1000);
  CHECK(load_documents({datasets / "wikitext2/wiki.test.raw"}).size() == 1);
  CHECK(load_documents({datasets / "instruct/alpaca_5000.json"}).size() == 5000);
  CHECK(load_documents({datasets / "instruct/dolly_hhrlhf_train_small.jsonl"}).size() == 1000);
  CHECK(load_documents({datasets / "gsm8k/test.jsonl"}).size() == 1319);
  CHECK(load_documents({datasets / "tinystories/tinystories_v2gpt4_10k_lines.txt"}).size() == 1728);
}
