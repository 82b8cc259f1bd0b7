#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace elastify::options {

/// A value as the user wrote it, before its type is known.
struct Given {
  enum class Kind : uint8_t { kNothing, kText, kList, kSection };
  Kind kind = Kind::kNothing;
  std::vector<std::string> words;  ///< kText: one; kList: its items
  std::string place;  ///< where it was written, for errors: "run.yaml:5", "--set seed=1", "--seed"

  static Given text(std::string word, std::string place) {
    return {Kind::kText, {std::move(word)}, std::move(place)};
  }
  static Given list(std::vector<std::string> words, std::string place) {
    return {Kind::kList, std::move(words), std::move(place)};
  }
  /// The value in words, for errors: "'many'", "a list", "a section", "nothing".
  std::string described() const {
    if (kind == Kind::kText) return "'" + words.front() + "'";
    return kind == Kind::kList ? "a list" : kind == Kind::kSection ? "a section" : "nothing";
  }
};

}  // namespace elastify::options
