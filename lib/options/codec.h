#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "options/given.h"
#include "options/named.h"

namespace elastify::options {

/// A name that an option accepts, and what it means.
struct Choice {
  std::string name, help;
};

/// How values of one type are read and written.
template <typename T>
struct Codec {
  std::string type;  ///< for help: "INT", "TEXT"
  /// \throws UsageError  with what was expected, without the place
  std::function<T(const Given&)> parse;
  std::function<nlohmann::ordered_json(const T&)> write;
  std::vector<Choice> choices = {};  ///< of types with a fixed set of names
  bool takes_list = false;           ///< several words on the command line
};

/// The word of a value that is a single word.
/// \throws UsageError  that says what was expected
const std::string& word_of(const Given& given, std::string_view expected);
[[noreturn]] void reject(const Given& given, std::string_view expected);
/// The words of a list, or of a single word.
std::vector<std::string> words_of(const Given& given, std::string_view expected);
/// A list joined by commas, for types whose text form has commas itself.
std::string joined(const Given& given, std::string_view expected);

Codec<bool> codec_of(const bool*);
Codec<std::optional<bool>> codec_of(const std::optional<bool>*);
Codec<int64_t> codec_of(const int64_t*);
/// Finite numbers only.
Codec<double> codec_of(const double*);
Codec<std::string> codec_of(const std::string*);
Codec<std::vector<std::string>> codec_of(const std::vector<std::string>*);

/// A type with a text form: `parse` throws UsageError, `text` is its inverse.
template <typename T>
Codec<T> text_codec(std::string type, std::function<T(const std::string&)> parse,
                    std::function<std::string(const T&)> text, std::vector<Choice> choices = {}) {
  return {std::move(type), [parse](const Given& given) { return parse(joined(given, "a name")); },
          [text](const T& value) { return nlohmann::ordered_json(text(value)); }, std::move(choices)};
}

/// \param noun  the kind of thing, for errors: "metric"
template <NamedEnum E>
Codec<E> enum_codec(const std::string& noun) {
  std::vector<Choice> choices;
  for (const Named<E>& entry : names_of(E{}))
    choices.push_back({std::string(entry.name), std::string(entry.help)});
  return {"NAME", [noun](const Given& given) { return value_in_table<E>(noun, word_of(given, "a name")); },
          [](const E& value) { return nlohmann::ordered_json(name_in_table(value)); }, std::move(choices)};
}

/// A list of names: "a,b", or a list in YAML.
template <NamedEnum E>
Codec<std::vector<E>> enum_list_codec(const std::string& noun) {
  const Codec<E> one = enum_codec<E>(noun);
  return {"NAME,...",
          [noun](const Given& given) {
            std::vector<E> values;
            std::string all = joined(given, "a list of names");
            for (size_t begin = 0; begin <= all.size();) {
              const size_t end = std::min(all.find(',', begin), all.size());
              values.push_back(value_in_table<E>(noun, std::string_view(all).substr(begin, end - begin)));
              begin = end + 1;
            }
            return values;
          },
          [](const std::vector<E>& values) {
            auto names = nlohmann::ordered_json::array();
            for (const E value : values) names.push_back(name_in_table(value));
            return names;
          },
          one.choices};
}

}  // namespace elastify::options
