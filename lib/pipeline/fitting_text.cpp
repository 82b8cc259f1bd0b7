#include "pipeline/fitting_text.h"

#include <algorithm>

#include "base/error.h"

namespace elastify::pipeline {
namespace {

/// Number of held-out tokens that judge repairs, over all sources.
constexpr int64_t kGuardTokens = 4096;

/// Samples text twice: the judging text has another seed than the fitting text.
FittingText sampled(const OpenModel& source, const nn::Decoder& decoder, const TextOptions& text) {
  TextOptions judging = text;
  judging.tokens = std::max(kGuardTokens, text.seq);
  judging.seed = text.seed + 1;
  return {fitting_batches(source, decoder, text), {{calibration_batches(source, decoder, judging)}}};
}

/// Whether the documents may be long enough for a sequence. A token stands for at least one byte.
bool may_hold_sequence(const std::vector<std::string>& documents, int64_t seq) {
  size_t n_bytes = 0;
  for (const std::string& document : documents) n_bytes += document.size();
  return static_cast<int64_t>(n_bytes) >= seq;
}

}  // namespace

FittingText guarded_text(const OpenModel& source, const nn::Decoder& decoder, const TextOptions& text) {
  if (std::find(text.data.begin(), text.data.end(), "self") != text.data.end())
    return sampled(source, decoder, text);
  const auto tokenizer = tokenizer_of(source);
  const PartedDocuments parts = part_documents({text.data.begin(), text.data.end()});
  const auto draw = [&](const std::vector<std::string>& documents, int64_t n_tokens) {
    return batches_of(
        make_batches(*tokenizer, documents, text.seq, n_tokens, static_cast<uint64_t>(text.seed)),
        text.batch);
  };
  FittingText result;
  const auto n_files = static_cast<int64_t>(parts.held_out.size());
  for (const std::vector<std::string>& documents : parts.held_out) {
    if (!may_hold_sequence(documents, text.seq)) continue;
    try {
      result.held_out.sources.push_back(draw(documents, std::max(kGuardTokens / n_files, text.seq)));
    } catch (const TooLittleText&) {
      continue;  // the file has too little text to judge by
    }
  }
  result.batches = split_for_holdout(draw(parts.kept, text.tokens));
  return result;
}

}  // namespace elastify::pipeline
