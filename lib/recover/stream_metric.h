#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"
#include "recover/options.h"

namespace elastify::recover {

/// Measures the cost of errors in the residual stream, by direction. The result for every layer is the lower
/// factor L of L L^T = E[g g^T] + 0.1 of its mean diagonal, where g is the gradient of the loss by the stream
/// after the layer. If tokens are weighed, g is multiplied by the stream's root mean square, because the
/// weights divide errors by it. No token's squared gradient counts more than four times the median. Costs of
/// different layers are comparable. One forward and one backward pass. Memory: the streams after all layers,
/// for at least max(4,096, 8 D) tokens.
/// \param batches  calibration token ids, int64 [B, T]; a part of them is used
/// \returns float64 [D, D] on the CPU, [n_layers]; undefined, which means the Euclidean metric, for a model
///   that lacks a half of some layer, since gradients cannot pass through it
/// Source: Kronecker-factored curvature, arXiv:1503.05671, the half of the outputs
std::vector<at::Tensor> stream_metrics(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                       const ClosedFormOptions& options);

}  // namespace elastify::recover
