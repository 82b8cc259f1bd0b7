#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace elastify {

/// Cuts text into the words inside which byte-level BPE works. It applies a list of regular expressions, each
/// to the pieces of the one before. Every match is a piece, and so is the text between two matches.
class PreTokenizer {
 public:
  /// \param patterns  PCRE2 syntax, Unicode classes
  /// \throws Error    naming the pattern that is not a regular expression
  explicit PreTokenizer(const std::vector<std::string>& patterns);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;

  /// \param text  well-formed UTF-8; the pieces are views into it, in order, and cover it
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Step;
  std::vector<Step> steps_;
};

/// Returns the patterns of a value of GGUF's tokenizer.ggml.pre.
/// \throws Error  for an unknown value; the message lists the known ones
const std::vector<std::string>& pre_tokenizer_patterns(std::string_view pre);

/// Returns the tokenizer.ggml.pre that has these patterns, or an empty string.
std::string_view find_pre_tokenizer(const std::vector<std::string>& patterns);

/// "gpt-2, llama-bpe, ...", for messages.
std::string known_pre_tokenizers();

/// Patterns that Hugging Face's pre_tokenizers refer to by name.
extern const char* const kGpt2Pattern;    ///< pre_tokenizer ByteLevel with use_regex
extern const char* const kDigitPattern;   ///< Digits with individual_digits
extern const char* const kDigitsPattern;  ///< Digits without individual_digits

}  // namespace elastify
