#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"
#include "recover/options.h"

namespace elastify::recover {

/// Least-squares repairs of o and down of every layer at these widths: with X the inputs that the level keeps
/// and Y what the full model computes, W = argmin ||Y - X W^T - bias||^2 + ridge ||W - W_S||^2, W_S the
/// weights as they are; an adapter is the nearest W - W_S of its rank in what it does to X. Ranks that are
/// spread go where spread_ranks() says, and nearest is then by what errors cost (stream_metrics()).
/// Sequential fits go from the first layer to the last, on inputs of the level itself. Output norms come
/// last, see fit_output_norms(). No training. Levels fitted together share the full model's passes and are as
/// if fitted one by one. Memory: the residual stream of every level and what goes into one projection, over
/// all batches, and second moments of a projection's inputs, up to eight times k^2 in float64. Spread ranks:
/// see stream_metrics(), too.
/// \param decoder  the full model, units in order of importance
/// \param batches  calibration token ids, int64 [B, T]
/// \param levels   widths of each
/// \returns for each level, in the decoder's type; empty for a half of a layer that a level leaves out
/// Source: OSSCAR, arXiv:2403.12983; FLAP, arXiv:2312.11983 (bias)
std::vector<nn::LevelRepair> fit_levels(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                        const std::vector<Widths>& levels, const ClosedFormOptions& options);
/// The same for one level.
nn::LevelRepair fit_level(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                          const Widths& widths, const ClosedFormOptions& options);

}  // namespace elastify::recover
