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

/// Ranks of every level's adapters, all together no larger than adapters of options.rank on every matrix
/// would be. Where it goes by errors: each further rank of a matrix takes something off the loss, by the
/// matrix's own error on the full model's inputs and by what errors there cost; those that take most for
/// their parameters come first.
/// \param decoder  the full model, units in order of importance
/// \param metrics  of every layer, see stream_metrics()
/// \returns [levels][n_layers]
std::vector<std::vector<LayerRanks>> spread_ranks(const nn::Decoder& decoder,
                                                  const std::vector<at::Tensor>& batches,
                                                  const std::vector<Widths>& levels,
                                                  const std::vector<at::Tensor>& metrics,
                                                  const ClosedFormOptions& options);

}  // namespace elastify::recover
