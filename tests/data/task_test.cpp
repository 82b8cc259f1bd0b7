#include "data/task.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"

using namespace elastify;
using namespace elastify::test;

namespace {

using Texts = std::vector<std::string>;

std::vector<TaskItem> load(const TemporaryDirectory& directory, const std::string& text) {
  write_text(directory / "task.jsonl", text);
  return load_task(directory / "task.jsonl");
}

}  // namespace

TEST_CASE("task: the three forms of items are read") {
  const TemporaryDirectory directory;
  const auto items = load(directory,
                          R"({"query": "Q", "choices": ["a", "b", "c"], "gold": 2}

{"context_options": ["one", "two"], "continuation": "rest", "gold": 0}
{"context": "the last", "continuation": "word"}
)");
  REQUIRE(items.size() == 3);
  CHECK(items[0].contexts == Texts{"Q", "Q", "Q"});
  CHECK(items[0].continuations == Texts{"a", "b", "c"});
  CHECK(items[0].gold == 2);
  CHECK(items[1].contexts == Texts{"one", "two"});
  CHECK(items[1].continuations == Texts{"rest", "rest"});
  CHECK(items[1].gold == 0);
  CHECK(items[2].contexts == Texts{"the last"});
  CHECK(items[2].continuations == Texts{"word"});
  CHECK(items[2].gold == 0);
}

TEST_CASE("task: an invalid item is refused with file and line") {
  struct Case {
    const char* text;
    const char* message;  ///< after the file's name
  };
  const Case cases[] = {
      {"", "holds no items"},
      {"\n \n", "holds no items"},
      {"{", "line 1: not valid JSON: "},
      {"7", "line 1: expected a JSON object, got number"},
      {"\n{\"text\": \"a\"}", "line 2: not a task item"},
      {R"({"choices": ["a", "b"], "gold": 0})", "line 1: query: missing"},
      {R"({"query": 1, "choices": ["a", "b"], "gold": 0})", "line 1: query: expected a string, got number"},
      {R"({"query": "Q", "choices": ["a"], "gold": 0})",
       "line 1: choices: expected an array of at least 2 strings"},
      {R"({"query": "Q", "choices": "ab", "gold": 0})",
       "line 1: choices: expected an array of at least 2 strings"},
      {R"({"query": "Q", "choices": ["a", 2], "gold": 0})",
       "line 1: choices[1]: expected a string, got number"},
      {R"({"query": "Q", "choices": ["a", ""], "gold": 0})", "line 1: the continuation of choice 1 is empty"},
      {R"({"query": "Q", "choices": ["a", "b"]})", "line 1: gold: missing"},
      {R"({"query": "Q", "choices": ["a", "b"], "gold": "0"})",
       "line 1: gold: expected an integer, got string"},
      {R"({"query": "Q", "choices": ["a", "b"], "gold": 2})",
       "line 1: gold: expected the number of a choice from 0 to 1, got 2"},
      {R"({"query": "Q", "choices": ["a", "b"], "gold": -1})",
       "line 1: gold: expected the number of a choice from 0 to 1, got -1"},
      {R"({"context_options": ["a", "b"], "gold": 0})", "line 1: continuation: missing"},
      {R"({"context": "a"})", "line 1: continuation: missing"},
      {"{\"context\": \"\xFF\"}", "line 1: not UTF-8: byte 0xff"},
  };
  const TemporaryDirectory directory;
  for (const Case& wrong : cases) {
    CAPTURE(wrong.text);
    const std::string expected = (directory / "task.jsonl").string() + ": " + wrong.message;
    CHECK(message_of([&] { load(directory, wrong.text); }).substr(0, expected.size()) == expected);
  }
}

TEST_CASE("task: published tasks are read whole") {
  if (!has_shared_data()) return;
  const fs::path folder = shared_data() / "datasets/mc";
  CHECK(load_task(folder / "lambada_openai.jsonl").size() == 5153);
  CHECK(load_task(folder / "piqa.jsonl").size() == 1838);
  CHECK(load_task(folder / "winogrande.jsonl").size() == 1267);
  CHECK(load_task(folder / "tinystories_cloze.jsonl").size() == 815);
}
