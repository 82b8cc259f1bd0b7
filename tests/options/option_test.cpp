#include "options/option.h"

#include <doctest/doctest.h>

#include <span>

#include "options/yaml.h"
#include "support/errors.h"
#include "support/temporary_directory.h"

namespace elastify::options {

enum class Fruit : uint8_t { kApple, kPear };
constexpr Named<Fruit> kFruits[] = {{Fruit::kApple, "apple", "round"}, {Fruit::kPear, "pear", "longish"}};
std::span<const Named<Fruit>> names_of(Fruit) {
  return kFruits;
}

namespace {

using test::hint_of;
using test::message_of;

struct Basket {
  int64_t count = 3;
  double temperature = 1, ripe = 0.5;
  bool washed = false;
  std::string shop;
  std::vector<std::string> notes;
  std::vector<Fruit> fruits{Fruit::kApple};
};
void declare(Options& options, Basket& basket) {
  options.add("count", basket.count, "how many").at_least(1);
  options.add("temperature", basket.temperature, "any number");
  options.add("ripe", basket.ripe, "share that is ripe").share();
  options.add("washed", basket.washed, "wash them");
  options.add("shop", basket.shop, "where from").affects(Result::kNone);
  options.add("notes", basket.notes, "anything");
  options.add("fruits", basket.fruits, "which", enum_list_codec<Fruit>("fruit"));
}

/// A basket under the section `basket`.
struct Subject {
  Basket basket;
  Options options;
  Sources sources;
  Subject() { options.section("basket", Result::kProfile, basket); }
  void set(const std::string& key, const std::string& word) {
    options.set(key, Given::text(word, "--flag"), sources);
  }
  void read(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const test::TemporaryDirectory directory;
    write_text(directory.path() / "a.yaml", text);
    set_from_yaml(options, load_yaml(directory.path() / "a.yaml", overrides), sources);
  }
};

TEST_SUITE("options") {
  TEST_CASE("option: numbers are no shares unless they are declared so") {
    Subject subject;
    subject.set("basket.temperature", "2");
    CHECK(subject.basket.temperature == 2);
    CHECK(message_of([&] { subject.set("basket.ripe", "2"); }) ==
          "--flag: expected a share from 0 to 1, got 2");
    CHECK(subject.basket.ripe == 0.5);
  }

  TEST_CASE("option: a value of the wrong kind or out of range is refused, and the field keeps its value") {
    struct Bad {
      const char *key, *word, *message;
    };
    for (const Bad& bad : std::initializer_list<Bad>{
             {"basket.count", "0", "expected at least 1, got 0"},
             {"basket.count", "many", "expected a whole number, got 'many'"},
             {"basket.count", "1e3", "expected a whole number, got '1e3'"},
             {"basket.count", "", "expected a whole number, got ''"},
             {"basket.temperature", "nan", "expected a finite number, got 'nan'"},
             {"basket.temperature", "inf", "expected a finite number, got 'inf'"},
             {"basket.washed", "perhaps", "expected true or false, got 'perhaps'"},
             {"basket.fruits", "apple,fig", "unknown fruit 'fig'; known are apple, pear"}}) {
      Subject subject;
      CAPTURE(bad.word);
      CHECK(message_of([&] { subject.set(bad.key, bad.word); }) == std::string("--flag: ") + bad.message);
      CHECK(subject.options.json() == Subject().options.json());
      CHECK(subject.sources.empty());
    }
  }

  TEST_CASE("option: an unknown key is refused with the nearest known one") {
    Subject subject;
    CHECK(message_of([&] { subject.set("basket.cout", "2"); }) == "--flag: unknown key 'basket.cout'");
    CHECK(hint_of([&] { subject.set("basket.cout", "2"); }).find("did you mean 'count'?") == 0);
  }

  TEST_CASE("option: YAML, --set and flags read the same values and note their source") {
    Subject subject;
    subject.read("basket:\n  count: 5\n  notes: [a, b]\n  fruits: [pear, apple]\n  washed: yes\n",
                 {"basket.shop=corner"});
    CHECK(subject.basket.count == 5);
    CHECK(subject.basket.notes == std::vector<std::string>{"a", "b"});
    CHECK(subject.basket.fruits == std::vector<Fruit>{Fruit::kPear, Fruit::kApple});
    CHECK(subject.basket.washed);
    CHECK(subject.basket.shop == "corner");
    CHECK(subject.sources.at("basket.count").ends_with("a.yaml:2"));
    CHECK(subject.sources.at("basket.shop") == "--set basket.shop=corner");
    CHECK_FALSE(subject.sources.contains("basket.ripe"));
  }

  TEST_CASE("option: YAML errors name file, line and key, and an override is blamed on itself") {
    const auto error = [](const std::string& text, const std::vector<std::string>& overrides = {}) {
      return message_of([&] { Subject().read(text, overrides); });
    };
    CHECK(error("basket:\n  count: [1, 2]\n")
              .find("a.yaml:2: basket.count: expected a whole number, got a list") != std::string::npos);
    CHECK(error("basket: 7\n").find("a.yaml:1: basket: expected a section with keys, got '7'") !=
          std::string::npos);
    CHECK(error("basket:\n  count: 1\n  count: 2\n").find("a.yaml:3: basket.count: is given twice") !=
          std::string::npos);
    CHECK(error("crate: {}\n").find("a.yaml:1: unknown key 'crate'") != std::string::npos);
    CHECK(error("", {"basket.count=0"}) == "--set basket.count=0: basket.count: expected at least 1, got 0");
    CHECK(error("", {"count"}) == "--set count: expected section.key=value");
  }

  TEST_CASE("option: what is written as YAML is read back to the same values") {
    Subject subject;
    subject.read("basket: {count: 7, notes: [\"a: b\", \"# c\"], ripe: 0.125, fruits: [pear]}\n");
    const std::string text = to_yaml(subject.options, subject.sources);
    CHECK(text.find("count: 7") != std::string::npos);
    CHECK(text.find("# default") != std::string::npos);
    Subject again;
    again.read(text);
    CHECK(again.options.json() == subject.options.json());
  }

  TEST_CASE("option: only options that change a result are in its key") {
    Subject subject;
    CHECK(subject.options.json(Result::kProfile).at("basket").contains("count"));
    CHECK_FALSE(subject.options.json(Result::kProfile).at("basket").contains("shop"));
    CHECK(subject.options.json(Result::kWidths).empty());
  }
}

}  // namespace
}  // namespace elastify::options
