#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"
#include "recover/guard.h"
#include "recover/options.h"

namespace elastify::recover {

/// Fits repairs of o and down of every layer by least squares, without training:
///   W = argmin ||Y - X W^T - bias||^2 + ridge ||W - W_S||^2
/// where X are the inputs that the level keeps, Y the outputs of the full model and W_S the unrepaired
/// weights. An adapter is the matrix of its rank whose product with X is nearest to that of W - W_S. Spread
/// ranks come from spread_ranks(); distances are then measured by the cost of errors (stream_metrics()).
/// Sequential fits go from the first layer to the last, on inputs of the level itself. Output norms are
/// fitted last, see fit_output_norms(). Levels fitted together share the full model's passes; the results are
/// the same as for single fits. Memory: the residual stream of every level and the inputs of one projection,
/// over all batches, and second moments of a projection's inputs, up to eight times k^2 in float64; with
/// spread ranks, that of stream_metrics() as well.
/// \param decoder  the full model, units in order of importance
/// \param batches  calibration token ids, int64 [B, T]
/// \param levels   widths of each
/// \param held_out  text for options.guard
/// \param verdicts  receives the guard's verdict on each level; may be null
/// \returns the repairs of each level, in the decoder's type; empty for a half of a layer that a level leaves
///   out
/// Source: OSSCAR, arXiv:2403.12983; FLAP, arXiv:2312.11983 (bias)
std::vector<nn::LevelRepair> fit_levels(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                        const std::vector<Widths>& levels, const ClosedFormOptions& options,
                                        const HeldOutText& held_out = {},
                                        std::vector<Verdict>* verdicts = nullptr);
/// Fits one level, see fit_levels().
nn::LevelRepair fit_level(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                          const Widths& widths, const ClosedFormOptions& options);

}  // namespace elastify::recover
