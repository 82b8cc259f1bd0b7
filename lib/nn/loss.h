#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace elastify::nn {

/// -log p of targets; the vocabulary is walked in pieces, so that no logits are kept.
/// \param rows     hidden states after the output norm, [n, D]
/// \param targets  int64 [n]
/// \param output   [V, D]
/// \returns        float32 [n]
at::Tensor nll(const at::Tensor& rows, const at::Tensor& targets, const at::Tensor& output);

/// The same and its gradient by the rows.
/// \param targets  undefined: of logits of 0, which leaves the log of the sum of exp(logits)
/// \returns        nll float32 [n]; gradient, like rows
std::pair<at::Tensor, at::Tensor> nll_and_gradient(const at::Tensor& rows, const at::Tensor& targets,
                                                   const at::Tensor& output);

}  // namespace elastify::nn
