#include "data/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "base/error.h"

namespace elastify {

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kDigitPattern = R"(\p{N})";
const char* const kDigitsPattern = R"(\p{N}+)";

namespace {

constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Known {
  const char* pre;
  std::vector<std::string> patterns;
};

/// Several names may have the same patterns; find_pre_tokenizer() returns the first of them.
/// Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_bpe), and the tokenizer.json files of the models
const std::vector<Known>& known() {
  static const std::vector<Known> table = [] {
    const std::vector<std::string> gpt2 = {kGpt2Pattern};
    const std::vector<std::string> llama3 = {kLlama3Pattern};
    const std::vector<std::string> qwen2 = {kQwen2Pattern};
    const std::vector<std::string> digits_gpt2 = {kDigitPattern, kGpt2Pattern};
    return std::vector<Known>{
        {"gpt-2", gpt2},
        {"llama-bpe", llama3},
        {"qwen2", qwen2},
        {"smollm", digits_gpt2},
        {"default", {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Pattern, kDigitsPattern, "[0-9][0-9][0-9]"}},
        {"phi-2", gpt2},
        {"llama3", llama3},
        {"llama-v3", llama3},
        {"dbrx", llama3},
        {"smaug-bpe", llama3},
        {"stablelm2", qwen2},
        {"starcoder", digits_gpt2},
        {"refact", digits_gpt2},
        {"command-r", digits_gpt2},
    };
  }();
  return table;
}

std::string pcre2_message(int code) {
  std::string message(256, '\0');
  const int n = pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(message.data()), message.size());
  message.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return message;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

}  // namespace

struct PreTokenizer::Step {
  std::unique_ptr<pcre2_code, FreeCode> code;
};

PreTokenizer::PreTokenizer(const std::vector<std::string>& patterns) {
  for (const std::string& pattern : patterns) {
    int code = 0;
    PCRE2_SIZE place = 0;
    Step step{std::unique_ptr<pcre2_code, FreeCode>(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                      &code, &place, nullptr))};
    if (!step.code) fail("pre-tokenizer pattern {}: character {}: {}", pattern, place, pcre2_message(code));
    pcre2_jit_compile(step.code.get(), PCRE2_JIT_COMPLETE);  // optional: it only makes matching faster
    steps_.push_back(std::move(step));
  }
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  std::vector<std::string_view> finer;
  for (const Step& step : steps_) {
    const std::unique_ptr<pcre2_match_data, FreeMatch> match(
        pcre2_match_data_create_from_pattern(step.code.get(), nullptr));
    if (!match) fail("out of memory");
    finer.clear();
    for (const std::string_view piece : pieces) {
      size_t done = 0;
      for (size_t at = 0; at < piece.size();) {
        const int code =
            pcre2_match(step.code.get(), reinterpret_cast<PCRE2_SPTR>(piece.data()), piece.size(), at,
                        PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), nullptr);
        if (code == PCRE2_ERROR_NOMATCH) break;
        if (code < 0) fail("pre-tokenizer: {}", pcre2_message(code));
        const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
        if (bounds[0] > done) finer.push_back(piece.substr(done, bounds[0] - done));
        finer.push_back(piece.substr(bounds[0], bounds[1] - bounds[0]));
        at = done = bounds[1];
      }
      if (done < piece.size()) finer.push_back(piece.substr(done));
    }
    pieces.swap(finer);
  }
  return pieces;
}

const std::vector<std::string>& pre_tokenizer_patterns(std::string_view pre) {
  for (const Known& entry : known()) {
    if (entry.pre == pre) return entry.patterns;
  }
  fail("unknown pre-tokenizer {:?}; known: {}", pre, known_pre_tokenizers());
}

std::string_view find_pre_tokenizer(const std::vector<std::string>& patterns) {
  for (const Known& entry : known()) {
    if (entry.patterns == patterns) return entry.pre;
  }
  return {};
}

std::string known_pre_tokenizers() {
  std::string names;
  for (const Known& entry : known()) names += fmt::format("{}{}", names.empty() ? "" : ", ", entry.pre);
  return names;
}

}  // namespace elastify
