#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"
#include "profile/communicator.h"
#include "profile/statistics.h"
#include "profile/unfinished.h"

namespace elastify::profile {

// The two orders of the same work. Both add up the same numbers in the same order per layer, so that they
// give the same sums up to float32 rounding. Batches: token ids, int64 [B, T], B the same but for the last
// one.

/// Batch by batch through all layers; every layer's sums in memory.
/// \returns sum of -log p over all predicted tokens
double collect_resident(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                        const Wanted& wanted, const Unfinished& unfinished, double save_every,
                        std::vector<LayerStatistics>& layers);

/// Layer by layer over all batches, there and back again; activations between the layers in files, each
/// layer's sums in the parts "forward-<l>" and "backward-<l>" of the unfinished work.
double collect_streamed(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                        const Wanted& wanted, const Unfinished& unfinished);
/// The sums of one layer that collect_streamed() left.
LayerStatistics load_streamed(const ModelSpec& spec, int64_t layer, const Wanted& wanted,
                              const Unfinished& unfinished);

/// Sums over predicted tokens of -log p, of the whole model and without each layer.
struct RemovalSums {
  double nll = 0;
  std::vector<double> without;  ///< [n_layers]
};
/// What leaves layer l out shares all layers before l with the whole model, so these run once; layer by
/// layer, so that a streamed model is read once. Activations are kept in a file where `unfinished` is kept.
RemovalSums measure_removal(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                            const Unfinished& unfinished);

}  // namespace elastify::profile
