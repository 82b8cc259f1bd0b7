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
  int64_t tokens = 0;        ///< number of predicted tokens
  double tokens_per_second = 0;
};

/// Perplexity over sequences at these widths (null: full). Every sequence starts without context.
/// \param progress  of the work that this is part of, in tokens; null: shows a bar of its own
/// \param repairs   the level's repairs; null: none
PerplexityResult perplexity(const nn::Decoder& decoder, const TokenBatches& batches, const Widths* widths,
                            int64_t batch, Progress* progress = nullptr,
                            const nn::LevelRepair* repairs = nullptr);
/// \throws Error  if the loss is infinite or not a number
void require_finite(const PerplexityResult& result);

struct TaskResult {
  double accuracy = 0;       ///< share of items where the gold choice has the highest sum of log p
  double accuracy_norm = 0;  ///< the same with log p per character of the continuation
  int64_t items = 0;
};

/// Multiple choice by log-likelihood of the continuation given its context. A bos stands in front if the
/// vocabulary adds one. Items longer than the model's context lose tokens on the left.
/// \param repairs  the level's repairs; null: none
TaskResult multiple_choice(const nn::Decoder& decoder, const Tokenizer& tokenizer,
                           const std::vector<TaskItem>& items, const Widths* widths,
                           const nn::LevelRepair* repairs = nullptr);

/// Largest absolute difference between the logits of two models on fixed pseudo-random ids, divided by the
/// standard deviation of the logits of `a`.
/// \param options_of_a  widths and repairs for the pass of `a`
double logit_difference(const nn::Decoder& a, const nn::Decoder& b, int64_t n_tokens, uint64_t seed,
                        const nn::ForwardOptions& options_of_a = {});

}  // namespace elastify::eval
