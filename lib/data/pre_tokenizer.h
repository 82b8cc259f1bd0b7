#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace elastify {

/// Cuts text into the words that byte-level BPE works within: a list of regular expressions, each applied to
/// the pieces of the one before. What an expression matches is a piece, and so is what lies between two
/// matches.
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

/// The patterns behind a value of GGUF's tokenizer.ggml.pre.
/// \throws Error  naming the known ones
const std::vector<std::string>& pre_tokenizer_patterns(std::string_view pre);

/// The tokenizer.ggml.pre whose patterns these are, or an empty string.
std::string_view find_pre_tokenizer(const std::vector<std::string>& patterns);

/// "gpt-2, llama-bpe, ...", for messages.
std::string known_pre_tokenizers();

/// The patterns that Hugging Face has names for.
extern const char* const kGpt2Pattern;    ///< pre_tokenizer ByteLevel with use_regex
extern const char* const kDigitPattern;   ///< Digits with individual_digits
extern const char* const kDigitsPattern;  ///< Digits without

}  // namespace elastify
