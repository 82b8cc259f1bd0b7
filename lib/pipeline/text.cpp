#include "pipeline/text.h"

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "base/size.h"
#include "nn/sample.h"
#include "nn/token_ids.h"
#include "profile/memory.h"

namespace elastify::pipeline {
namespace {

constexpr int64_t kSampledTokens = 8192;  ///< when all text is asked for: samples have no end

TokenBatches sample(const OpenModel& model, const nn::Decoder& decoder, const TextOptions& text,
                    uint64_t seed) {
  if (text.data.size() > 1) throw UsageError("data: 'self' cannot be combined with files");
  const int64_t n = std::max<int64_t>(1, (text.tokens > 0 ? text.tokens : kSampledTokens) / text.seq);
  const auto first = model.vocabulary ? model.vocabulary->bos : std::nullopt;
  TokenBatches batches;
  batches.seq_len = text.seq;
  batches.sequences =
      nn::sample_sequences(decoder, n, text.seq, static_cast<int32_t>(first.value_or(0)), seed);
  Sha256 digest;
  for (const auto& sequence : batches.sequences) digest.update(std::as_bytes(std::span(sequence)));
  batches.digest = digest.finish();
  return batches;
}

profile::MemoryNeed need_of(const ModelSpec& spec, const TextOptions& text) {
  profile::ProfileOptions options;
  options.text = text;
  options.metrics.clear();
  return profile::memory_need(spec, options);
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_of(const OpenModel& model) {
  if (!model.vocabulary)
    throw UsageError(fmt::format("{}: the model carries no tokenizer", model.checkpoint.path().string()),
                     "name one with --tokenizer FILE (tokenizer.json, .model, .bin or .gguf)");
  if (model.vocabulary->size() > model.checkpoint.spec().n_vocab)
    throw Error(fmt::format("the tokenizer has {} tokens, the model {} rows", model.vocabulary->size(),
                            model.checkpoint.spec().n_vocab),
                "this is another model's tokenizer; name the right one with --tokenizer");
  return make_tokenizer(*model.vocabulary);
}

TokenBatches load_batches(const OpenModel& model, const nn::Decoder& decoder, const TextOptions& text,
                          bool drawn) {
  const auto seed = static_cast<uint64_t>(text.seed);
  if (std::find(text.data.begin(), text.data.end(), "self") != text.data.end())
    return sample(model, decoder, text, drawn ? seed : 0);
  const auto tokenizer = tokenizer_of(model);
  const std::vector<fs::path> files(text.data.begin(), text.data.end());
  return make_batches(*tokenizer, load_documents(files), text.seq, text.tokens,
                      drawn ? std::optional(seed) : std::nullopt);
}

std::vector<at::Tensor> calibration_batches(const OpenModel& source, const nn::Decoder& decoder,
                                            const TextOptions& text) {
  return batches_of(load_batches(source, decoder, text, true), text.batch);
}

std::vector<at::Tensor> batches_of(const TokenBatches& text, int64_t batch) {
  const std::span<const std::vector<int32_t>> sequences = text.sequences;
  std::vector<at::Tensor> ids;
  const auto step = static_cast<size_t>(batch);
  for (size_t first = 0; first < sequences.size(); first += step)
    ids.push_back(nn::stack_ids(sequences.subspan(first, std::min(step, sequences.size() - first))));
  return ids;
}

std::vector<at::Tensor> split_for_holdout(std::vector<at::Tensor> batches) {
  if (batches.size() == 1) batches = batches.front().split((batches.front().size(0) + 4) / 5);
  return batches;
}

std::vector<at::Tensor> fitting_batches(const OpenModel& source, const nn::Decoder& decoder,
                                        const TextOptions& text) {
  return split_for_holdout(calibration_batches(source, decoder, text));
}

nn::DecoderOptions placed(const ModelSpec& spec, const nn::DecoderOptions& compute, const TextOptions& text,
                          int64_t max_ram) {
  nn::DecoderOptions options = compute;
  const profile::MemoryNeed need = need_of(spec, text);
  options.streamed = max_ram > 0 && need.resident > max_ram;
  if (options.streamed && need.streamed > max_ram)
    throw UsageError(fmt::format("max-ram {}: even layer by layer, {} are needed for sequences of {} tokens, "
                                 "{} at a time",
                                 format_bytes(max_ram), format_bytes(need.streamed), text.seq, text.batch),
                     text.batch > 1 ? "a smaller --batch needs less" : "a smaller --seq needs less");
  return options;
}

void require_resident(const ModelSpec& spec, const TextOptions& text, int64_t max_ram,
                      std::string_view work) {
  const int64_t need = need_of(spec, text).resident;
  if (max_ram > 0 && need > max_ram)
    throw UsageError(fmt::format("max-ram {}: {} needs all of the model in memory, {}", format_bytes(max_ram),
                                 work, format_bytes(need)),
                     "give more memory, or leave this work out");
}

}  // namespace elastify::pipeline
