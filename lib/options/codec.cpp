#include "options/codec.h"

#include <fmt/ranges.h>

#include <charconv>
#include <cmath>

namespace elastify::options {
namespace {

using nlohmann::ordered_json;

bool parse_bool(const Given& given) {
  const std::string& word = word_of(given, "true or false");
  for (const char* yes : {"true", "True", "TRUE", "yes", "on", "1"})
    if (word == yes) return true;
  for (const char* no : {"false", "False", "FALSE", "no", "off", "0"})
    if (word == no) return false;
  reject(given, "true or false");
}

std::from_chars_result from_chars(const char* first, const char* last, double& value) {
  return std::from_chars(first, last, value);
}
/// "0x10" is 16, as in YAML.
std::from_chars_result from_chars(const char* first, const char* last, int64_t& value) {
  const bool is_hex = last - first > 2 && first[0] == '0' && first[1] == 'x';
  return std::from_chars(is_hex ? first + 2 : first, last, value, is_hex ? 16 : 10);
}

template <typename T>
T parse_number(const Given& given, std::string_view expected) {
  const std::string& word = word_of(given, expected);
  const char* first = word.data() + (word.starts_with('+') ? 1 : 0);
  T value{};
  const auto [end, error] = from_chars(first, word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size() || word.empty()) reject(given, expected);
  return value;
}

}  // namespace

void reject(const Given& given, std::string_view expected) {
  throw UsageError(fmt::format("expected {}, got {}", expected, given.described()));
}

const std::string& word_of(const Given& given, std::string_view expected) {
  if (given.kind == Given::Kind::kList && given.words.size() == 1) return given.words.front();
  if (given.kind != Given::Kind::kText) reject(given, expected);
  return given.words.front();
}

std::vector<std::string> words_of(const Given& given, std::string_view expected) {
  if (given.kind != Given::Kind::kText && given.kind != Given::Kind::kList) reject(given, expected);
  return given.words;
}

std::string joined(const Given& given, std::string_view expected) {
  return fmt::format("{}", fmt::join(words_of(given, expected), ","));
}

Codec<bool> codec_of(const bool*) {
  return {"true|false", parse_bool, [](const bool& value) { return ordered_json(value); }};
}

Codec<std::optional<bool>> codec_of(const std::optional<bool>*) {
  return {"true|false", [](const Given& given) { return std::optional(parse_bool(given)); },
          [](const std::optional<bool>& value) { return value ? ordered_json(*value) : ordered_json(); }};
}

Codec<int64_t> codec_of(const int64_t*) {
  return {"INT", [](const Given& given) { return parse_number<int64_t>(given, "a whole number"); },
          [](const int64_t& value) { return ordered_json(value); }};
}

Codec<double> codec_of(const double*) {
  return {"NUMBER",
          [](const Given& given) {
            const auto value = parse_number<double>(given, "a number");
            if (!std::isfinite(value)) reject(given, "a finite number");
            return value;
          },
          [](const double& value) { return ordered_json(value); }};
}

Codec<std::string> codec_of(const std::string*) {
  return {"TEXT", [](const Given& given) { return word_of(given, "text"); },
          [](const std::string& value) { return ordered_json(value); }};
}

Codec<std::vector<std::string>> codec_of(const std::vector<std::string>*) {
  Codec<std::vector<std::string>> codec{
      "TEXT...", [](const Given& given) { return words_of(given, "a list of paths"); },
      [](const std::vector<std::string>& value) { return ordered_json(value); }};
  codec.takes_list = true;
  return codec;
}

}  // namespace elastify::options
