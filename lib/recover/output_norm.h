#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"

namespace elastify::recover {

/// Fits the weights of the output norm for every level, so that the Kullback-Leibler divergence from the full
/// model's predictions is least. This corrects overconfidence: a level's stream has errors, but the norm
/// scales it to the full model's size. The divergence is convex in these weights. Every fifth sequence is
/// held out (is_held_out()), and changes that do not help there are not kept.
/// \param decoder  the full model, units in order of importance
/// \param batches  calibration token ids, int64 [B, T]; a part of them is used
/// \param levels   widths of each level
/// \param repairs  of each level; receives its output norm, [D] in the decoder's type
void fit_output_norms(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                      const std::vector<Widths>& levels, std::vector<nn::LevelRepair>& repairs);

}  // namespace elastify::recover
