#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"

namespace elastify::recover {

/// Fits weights of the output norm to every level: of those that the norm could have, the ones with the least
/// Kullback-Leibler divergence from the full model's predictions. A level errs in its stream, and the norm
/// scales what is left to the size that the full model's has: the level is surer than it has reason to be.
/// The divergence is convex in these weights. Every fifth sequence is held out (is_held_out()); what does not
/// help there is not kept.
/// \param decoder  the full model, units in order of importance
/// \param batches  calibration token ids, int64 [B, T], of which a part is used
/// \param levels   widths of each
/// \param repairs  of each; takes its output norm, [D] in the decoder's type
void fit_output_norms(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                      const std::vector<Widths>& levels, std::vector<nn::LevelRepair>& repairs);

}  // namespace elastify::recover
