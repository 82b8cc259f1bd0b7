#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/text_options.h"
#include "nn/decoder.h"
#include "pipeline/open_model.h"

namespace elastify::pipeline {

/// Calibration text, and the options with which a model processes it.
struct Calibration {
  TextOptions text;
  nn::DecoderOptions compute;
  int64_t max_ram = 0;  ///< bytes; larger models are streamed or refused; 0: no limit
};

/// Sequences from text files, or sampled from the model if `data` is "self".
/// \param drawn  true: draw sequences from the whole text by the seed; false: take the first ones
TokenBatches load_batches(const OpenModel& model, const nn::Decoder& decoder, const TextOptions& text,
                          bool drawn);
/// The calibration text as token ids, int64 [B, T].
std::vector<at::Tensor> calibration_batches(const OpenModel& source, const nn::Decoder& decoder,
                                            const TextOptions& text);
/// Sequences as batches of token ids, int64 [B, T]; the last one may be smaller.
std::vector<at::Tensor> batches_of(const TokenBatches& sequences, int64_t batch);
/// Splits text of one batch, so that some of it can be held out.
std::vector<at::Tensor> split_for_holdout(std::vector<at::Tensor> batches);
/// The calibration text for fits, split if it is one batch.
std::vector<at::Tensor> fitting_batches(const OpenModel& source, const nn::Decoder& decoder,
                                        const TextOptions& text);

/// A tokenizer for the model's text.
/// \throws UsageError  if the model carries none
std::unique_ptr<Tokenizer> tokenizer_of(const OpenModel& model);

/// Decides how to hold the weights within a memory limit.
/// \returns `compute`, with weights streamed if the model does not fit otherwise
/// \throws UsageError  if not even a streamed model fits
nn::DecoderOptions placed(const ModelSpec& spec, const nn::DecoderOptions& compute, const TextOptions& text,
                          int64_t max_ram);
/// Checks that the whole model fits into memory, for work that cannot stream it.
/// \param work  for the message
/// \throws UsageError  if the model does not fit into `max_ram`
void require_resident(const ModelSpec& spec, const TextOptions& text, int64_t max_ram, std::string_view work);

}  // namespace elastify::pipeline
