#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace elastify::nn {

/// -log p of targets. The vocabulary is processed in pieces, so that the logits are not all in memory at
/// once.
/// \param rows     hidden states after the output norm, [n, D]
/// \param targets  int64 [n]
/// \param output   [V, D]
/// \returns        float32 [n]
at::Tensor nll(const at::Tensor& rows, const at::Tensor& targets, const at::Tensor& output);

/// nll() and its gradient by the rows.
/// \param targets  undefined: no target logit is subtracted, which gives the log of the sum of exp(logits)
/// \returns        nll float32 [n]; gradient, shaped like rows
std::pair<at::Tensor, at::Tensor> nll_and_gradient(const at::Tensor& rows, const at::Tensor& targets,
                                                   const at::Tensor& output);

}  // namespace elastify::nn
