#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "nn/decoder.h"
#include "recover/options.h"

namespace elastify::recover {

struct LayerRanks {
  int64_t attention_out = 0, down = 0;  ///< 0: no adapter there
};

/// Chooses the ranks of every level's adapters. Together they have no more parameters than adapters of
/// options.rank on every matrix. Each further rank of a matrix lowers the estimated loss: the estimate comes
/// from the matrix's error on the full model's inputs and from the cost of errors there (`metrics`). Ranks
/// with the largest gain per parameter are taken first.
/// \param decoder  the full model, units in order of importance
/// \param metrics  of every layer, see stream_metrics()
/// \returns [levels][n_layers]
std::vector<std::vector<LayerRanks>> spread_ranks(const nn::Decoder& decoder,
                                                  const std::vector<at::Tensor>& batches,
                                                  const std::vector<Widths>& levels,
                                                  const std::vector<at::Tensor>& metrics,
                                                  const ClosedFormOptions& options);

}  // namespace elastify::recover
