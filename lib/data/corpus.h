#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/tokenizer.h"

namespace elastify {

/// Documents of plain text. A .txt (or any other) file is one document, split at lines that hold only
/// "<|endoftext|>"; a .jsonl file is one document a line (field `text`; else the fields of instruction data,
/// each on a line of its own: instruction/input/output, prompt/response, question/answer). A .json file is an
/// array of such objects. Line ends are "\n" whatever the file has, a byte order mark is dropped.
/// \throws Error  naming file and line: unreadable, not UTF-8, no text field, empty
std::vector<std::string> load_documents(const std::vector<fs::path>& files);

/// Token sequences of equal length, ready for a forward pass.
struct TokenBatches {
  std::vector<std::vector<int32_t>> sequences;  ///< each of `seq_len` ids
  int64_t seq_len = 0;
  int64_t n_bytes = 0;  ///< of UTF-8 text that the predicted tokens (all but each sequence's first) stand for
  std::string digest;   ///< SHA-256 of the ids
  int64_t n_tokens() const { return static_cast<int64_t>(sequences.size()) * seq_len; }
};

/// Cuts documents into sequences of `seq_len` tokens and keeps up to `max_tokens` (0: all). Documents are
/// joined as models see them in training: bos before each where the vocabulary adds bos; else
/// "<|endoftext|>", or eos, between two, where the vocabulary has it. With `seed` the kept sequences are
/// drawn at random over the whole text, in the order drawn; without, they are the first ones. What is left
/// over at the end is dropped.
/// \throws Error  if the text, or `max_tokens`, is shorter than one sequence
TokenBatches make_batches(const Tokenizer& tokenizer, const std::vector<std::string>& documents,
                          int64_t seq_len, int64_t max_tokens, std::optional<uint64_t> seed);

}  // namespace elastify
