#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"
#include "recover/options.h"

namespace elastify::recover {

/// What errors in the residual stream cost, by their direction: for every layer lower L of L L^T = E[g g^T] +
/// 0.1 of its mean diagonal, g the gradient of the loss by the stream after the layer; where tokens are
/// weighed, times the stream's root mean square, which their errors are divided by. None counts more than
/// four times as much as the median. Costs of different layers compare. Memory: the streams after all layers,
/// of at least 4,096 tokens and 8 D.
/// \param batches  calibration token ids, int64 [B, T], of which a part is used: a pass there and back
/// \returns float64 [D, D] on the CPU, [n_layers]; undefined, the plain metric, for a model some half of whose
///   layers is left out: there is no way back through it
/// Source: Kronecker-factored curvature, arXiv:1503.05671, the half of the outputs
std::vector<at::Tensor> stream_metrics(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                       const ClosedFormOptions& options);

}  // namespace elastify::recover
