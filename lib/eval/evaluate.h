#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/progress.h"
#include "data/corpus.h"
#include "data/task.h"
#include "nn/decoder.h"

namespace elastify::eval {

struct PerplexityResult {
  double perplexity = 0;     ///< per token
  double bits_per_byte = 0;  ///< of UTF-8 text
  double nll = 0;            ///< nats per predicted token
  int64_t tokens = 0;        ///< predicted
  double tokens_per_second = 0;
};

/// Perplexity over sequences, each on its own (no context carried over), at these widths (null: full).
/// \param progress  of work that this is a part of, in tokens; null: shows its own
/// \param repairs   of the level, null: none
PerplexityResult perplexity(const nn::Decoder& decoder, const TokenBatches& batches, const Widths* widths,
                            int64_t batch, Progress* progress = nullptr,
                            const nn::LevelRepair* repairs = nullptr);

struct TaskResult {
  double accuracy = 0;       ///< highest sum of log p
  double accuracy_norm = 0;  ///< highest log p per character of the continuation
  int64_t items = 0;
};

/// Multiple choice by log-likelihood of the continuation given its context (bos in front where the vocabulary
/// adds one). Items longer than the model's context lose tokens on the left.
/// \param repairs  of the level, null: none
TaskResult multiple_choice(const nn::Decoder& decoder, const Tokenizer& tokenizer,
                           const std::vector<TaskItem>& items, const Widths* widths,
                           const nn::LevelRepair* repairs = nullptr);

/// Largest absolute difference of logits over the standard deviation of the first's, on fixed pseudo-random
/// ids.
/// \param options_of_a  widths and repairs of the first's pass
double logit_difference(const nn::Decoder& a, const nn::Decoder& b, int64_t n_tokens, uint64_t seed,
                        const nn::ForwardOptions& options_of_a = {});

}  // namespace elastify::eval
