#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "pipeline/text.h"
#include "recover/guard.h"

namespace elastify::pipeline {

/// Text for fits, and text of other documents to judge them by.
struct FittingText {
  std::vector<at::Tensor> batches;  ///< to fit on, see fitting_batches()
  recover::HeldOutText held_out;    ///< empty if the text is too short to hold some out
};

/// Splits the files by documents, see part_documents(). Text that is sampled from the model is sampled twice.
FittingText guarded_text(const OpenModel& source, const nn::Decoder& decoder, const TextOptions& text);

}  // namespace elastify::pipeline
