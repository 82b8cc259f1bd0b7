#include "data/corpus.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <span>

#include "base/error.h"
#include "base/hash.h"
#include "data/text_lines.h"
#include "data/vocabulary_checks.h"

namespace elastify {
namespace {

using nlohmann::json;

constexpr std::string_view kSeparator = "<|endoftext|>";
/// Text that is encoded in one go. If only the first tokens are wanted, the rest need not be encoded.
constexpr size_t kBytesAtOnce = size_t{4} << 20;
constexpr size_t kHoldOutEvery = 10;  ///< documents
constexpr size_t kLeastPiece = 64;    ///< bytes of a piece of a document that is cut

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

/// Removes line breaks at both ends. Only documents next to a separator lose them; a whole file keeps its
/// own.
std::string_view without_outer_line_breaks(std::string_view text) {
  const size_t begin = text.find_first_not_of('\n');
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of('\n') - begin + 1);
}

std::vector<std::string> split_plain(std::string_view text) {
  std::vector<std::string> documents;
  const auto keep = [&](std::string_view part, bool whole) {
    if (!is_blank(part)) documents.emplace_back(whole ? part : without_outer_line_breaks(part));
  };
  size_t begin = 0;
  for (size_t line = 0; line < text.size();) {
    const size_t end = std::min(text.find('\n', line), text.size());
    if (text.substr(line, end - line) == kSeparator) {
      keep(text.substr(begin, line - begin), false);
      begin = std::min(end + 1, text.size());
    }
    line = end + 1;
  }
  keep(text.substr(begin), begin == 0);
  return documents;
}

/// Returns the document that a JSON object holds.
/// \throws Error  without the place, which the caller adds
std::string document_of(const json& object) {
  if (!object.is_object()) fail("expected a JSON object, got {}", object.type_name());
  const auto text = [&](const char* key) -> const std::string* {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return nullptr;
    if (!found->is_string()) fail("{}: expected a string, got {}", key, found->type_name());
    return found->get_ptr<const std::string*>();
  };
  if (const std::string* whole = text("text")) return *whole;
  static constexpr const char* kForms[][3] = {
      {"instruction", "input", "output"}, {"prompt", nullptr, "response"}, {"question", nullptr, "answer"}};
  for (const auto& form : kForms) {
    if (!object.contains(form[0]) || !object.contains(form[2])) continue;
    std::string joined;
    for (const char* key : form) {
      const std::string* part = key == nullptr ? nullptr : text(key);
      if (part == nullptr || part->empty()) continue;
      if (!joined.empty() && joined.back() != '\n') joined += '\n';
      joined += *part;
    }
    return joined;
  }
  throw Error("no text field", "expected text, instruction/input/output, prompt/response or question/answer");
}

std::vector<std::string> read_documents(const fs::path& file) {
  const std::string text = read_utf8(file);
  if (file.extension() == ".jsonl") {
    std::vector<std::string> documents;
    for_each_json_line(file, text, [&](const json& object) { documents.push_back(document_of(object)); });
    return documents;
  }
  if (file.extension() == ".json") {
    const json array = parse_json_text(file.string(), text);
    if (!array.is_array()) fail("{}: expected a JSON array, got {}", file.string(), array.type_name());
    std::vector<std::string> documents;
    for (const json& object : array) {
      documents.push_back(with_context(fmt::format("{}: entry {}", file.string(), documents.size() + 1),
                                       [&] { return document_of(object); }));
    }
    return documents;
  }
  return split_plain(text);
}

/// Pieces of at least `least` bytes that end at a line break, or at a space where the next line break is
/// twice as far away; the last one may be shorter. Documents of up to twice that size stay whole.
std::vector<std::string> cut(const std::string& document, size_t least) {
  std::vector<std::string> pieces;
  size_t begin = 0;
  while (document.size() - begin > 2 * least) {
    size_t end = document.find('\n', begin + least);
    if (end == std::string::npos || end - begin > 2 * least) end = document.find(' ', begin + least);
    if (end == std::string::npos) break;
    pieces.push_back(document.substr(begin, end - begin));
    begin = end + 1;
  }
  pieces.push_back(document.substr(begin));
  std::erase_if(pieces, [](const std::string& piece) { return is_blank(piece); });
  return pieces;
}

/// The tokens of joined documents, and how many bytes of text each token stands for.
class TokenStream {
 public:
  explicit TokenStream(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), vocabulary_(tokenizer.vocabulary()) {
    n_bytes_.reserve(vocabulary_.tokens.size());
    for (int64_t id = 0; id < vocabulary_.size(); ++id)
      n_bytes_.push_back(static_cast<int32_t>(token_text(vocabulary_, id).size()));
    if (vocabulary_.add_bos) {
      before_ = vocabulary_.bos.value();
      return;
    }
    for (int64_t id = 0; id < vocabulary_.size() && between_ < 0; ++id) {
      if (vocabulary_.types[static_cast<size_t>(id)] == TokenType::kControl &&
          vocabulary_.tokens[static_cast<size_t>(id)] == kSeparator)
        between_ = id;
    }
    if (between_ < 0) between_ = vocabulary_.eos.value_or(-1);
  }

  void append(const std::vector<std::string>& documents) {
    for (const auto& document : tokenizer_.encode_all(documents)) {
      if (before_ >= 0) put(before_, 0);
      if (between_ >= 0 && !ids_.empty()) put(between_, 0);
      bool first = true;
      for (const int32_t id : document) {
        const auto place = static_cast<size_t>(id);
        int32_t n_bytes = n_bytes_.at(place);
        // sentencepiece puts a space before a text; that space is not part of the text.
        if (first && puts_space_before() && vocabulary_.tokens[place].starts_with(kSpaceSign)) --n_bytes;
        put(id, n_bytes);
        first = false;
      }
    }
  }

  const std::vector<int32_t>& ids() const { return ids_; }
  int64_t n_bytes(size_t begin, size_t end) const {
    return std::accumulate(bytes_.begin() + static_cast<ptrdiff_t>(begin),
                           bytes_.begin() + static_cast<ptrdiff_t>(end), int64_t{0});
  }

 private:
  bool puts_space_before() const {
    return vocabulary_.kind == TokenizerKind::kSentencePiece && vocabulary_.add_space_prefix;
  }
  void put(int64_t id, int32_t n_bytes) {
    ids_.push_back(static_cast<int32_t>(id));
    bytes_.push_back(n_bytes);
  }

  const Tokenizer& tokenizer_;
  const Vocabulary& vocabulary_;
  int64_t before_ = -1, between_ = -1;  ///< token ids; -1: none
  std::vector<int32_t> n_bytes_;        ///< per token of the vocabulary
  std::vector<int32_t> ids_;
  std::vector<int32_t> bytes_;  ///< per token of the stream
};

/// Draws `n` of the numbers below `n_all` in random order. A seed gives the same numbers on every platform.
std::vector<size_t> draw(size_t n_all, size_t n, uint64_t seed) {
  std::vector<size_t> order(n_all);
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < n; ++i) {
    // The bias of the remainder is below 1e-10 for any corpus that fits in memory.
    std::swap(order[i], order[i + random() % (n_all - i)]);
  }
  order.resize(n);
  return order;
}

}  // namespace

std::vector<std::string> load_documents(const std::vector<fs::path>& files) {
  std::vector<std::string> all;
  for (const fs::path& file : files) {
    std::vector<std::string> documents = read_documents(file);
    std::erase_if(documents, [](const std::string& document) { return is_blank(document); });
    if (documents.empty()) fail("{}: holds no text", file.string());
    std::move(documents.begin(), documents.end(), std::back_inserter(all));
  }
  return all;
}

PartedDocuments part_documents(const std::vector<fs::path>& files) {
  PartedDocuments parts;
  for (const fs::path& file : files) {
    const std::vector<std::string> whole = load_documents({file});
    size_t n_bytes = 0;
    for (const std::string& document : whole) n_bytes += document.size();
    const size_t most = std::max<size_t>(n_bytes / kHoldOutEvery, kLeastPiece);
    std::vector<std::string> documents;
    for (const std::string& document : whole) {
      std::vector<std::string> pieces = cut(document, most);
      std::move(pieces.begin(), pieces.end(), std::back_inserter(documents));
    }
    std::vector<std::string>& held_out = parts.held_out.emplace_back();
    const size_t n = documents.size(), period = std::min(n, kHoldOutEvery);
    for (size_t i = 0; i < n; ++i)
      (n > 1 && i % period == period - 1 ? held_out : parts.kept).push_back(std::move(documents[i]));
  }
  return parts;
}

TokenBatches make_batches(const Tokenizer& tokenizer, const std::vector<std::string>& documents,
                          int64_t seq_len, int64_t max_tokens, std::optional<uint64_t> seed) {
  if (seq_len < 2) fail("sequence length {}: expected at least 2", seq_len);
  if (max_tokens < 0 || (max_tokens > 0 && max_tokens < seq_len))
    fail("at most {} tokens: less than one sequence of {}", max_tokens, seq_len);
  const auto length = static_cast<size_t>(seq_len);
  const size_t n_wanted = max_tokens == 0 ? SIZE_MAX / length : static_cast<size_t>(max_tokens) / length;

  TokenStream stream(tokenizer);
  for (size_t begin = 0; begin < documents.size();) {
    if (!seed && stream.ids().size() / length >= n_wanted) break;
    std::vector<std::string> some;
    for (size_t n_bytes = 0; begin < documents.size() && n_bytes < kBytesAtOnce; ++begin) {
      n_bytes += documents[begin].size();
      some.push_back(documents[begin]);
    }
    stream.append(some);
  }
  const std::vector<int32_t>& ids = stream.ids();
  const size_t n_all = ids.size() / length;
  if (n_all == 0) {
    throw TooLittleText(
        fmt::format("the text has {} tokens, less than one sequence of {}", ids.size(), seq_len),
        "use more text or a shorter sequence length");
  }
  const size_t n = std::min(n_all, n_wanted);
  std::vector<size_t> chosen(n);
  std::iota(chosen.begin(), chosen.end(), size_t{0});
  if (seed) chosen = draw(n_all, n, *seed);

  static_assert(std::endian::native == std::endian::little, "the digest is of little-endian ids");
  TokenBatches batches;
  batches.seq_len = seq_len;
  Sha256 digest;
  for (const size_t i : chosen) {
    const std::span<const int32_t> sequence = std::span(ids).subspan(i * length, length);
    batches.sequences.emplace_back(sequence.begin(), sequence.end());
    batches.n_bytes += stream.n_bytes(i * length + 1, (i + 1) * length);
    digest.update(std::as_bytes(sequence));
  }
  batches.digest = digest.finish();
  return batches;
}

}  // namespace elastify
