#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/tokenizer.h"

namespace elastify {

/// Loads documents of plain text; line ends become "\n" and a byte order mark is dropped.
///   .jsonl  one document a line: the field `text`, or else the fields of instruction data, each on a line of
///   its own (instruction/input/output, prompt/response, question/answer)
///   .json   an array of such objects
///   others  one document, split at lines that hold only "<|endoftext|>"
/// \throws Error  naming file and line: unreadable, not UTF-8, no text field, empty
std::vector<std::string> load_documents(const std::vector<fs::path>& files);

/// Documents in two parts that have no document in common.
struct PartedDocuments {
  std::vector<std::string> kept;
  std::vector<std::vector<std::string>> held_out;  ///< [files]; empty for a file that is too short to part
};
/// Holds out every tenth document of each file, or the last one of a file with fewer. A document that is
/// longer than a tenth of its file is cut into pieces first, at line breaks or spaces, and each piece counts
/// as a document. A single document of up to 128 bytes is kept whole.
/// \throws Error  as load_documents()
PartedDocuments part_documents(const std::vector<fs::path>& files);

/// Token sequences of equal length, ready for a forward pass.
struct TokenBatches {
  std::vector<std::vector<int32_t>> sequences;  ///< each of `seq_len` ids
  int64_t seq_len = 0;
  int64_t n_bytes = 0;  ///< UTF-8 text of the predicted tokens (all but each sequence's first)
  std::string digest;   ///< SHA-256 of the ids
  int64_t n_tokens() const { return static_cast<int64_t>(sequences.size()) * seq_len; }
};

/// The text is shorter than one sequence.
class TooLittleText : public Error {
 public:
  using Error::Error;
};

/// Cuts documents into sequences of `seq_len` tokens and keeps up to `max_tokens` (0: all). Documents are
/// joined as models see them in training. If the vocabulary adds bos, bos stands before each document;
/// otherwise "<|endoftext|>", or else eos, stands between two documents if the vocabulary has it.
/// With `seed`, sequences are drawn at random from the whole text and kept in the order drawn. Without it,
/// the first ones are kept. Tokens left over at the end are dropped.
/// \throws TooLittleText  if the text is shorter than one sequence
/// \throws Error  if `max_tokens` is
TokenBatches make_batches(const Tokenizer& tokenizer, const std::vector<std::string>& documents,
                          int64_t seq_len, int64_t max_tokens, std::optional<uint64_t> seed);

}  // namespace elastify
