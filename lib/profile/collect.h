#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"
#include "profile/communicator.h"
#include "profile/statistics.h"
#include "profile/unfinished.h"

namespace elastify::profile {

// Two orders of the same work. For each layer both add up the same numbers in the same order, so their sums
// agree up to float32 rounding. Batches are token ids, int64 [B, T]; the last one may have fewer rows.

/// Takes batch by batch through all layers and keeps every layer's sums in memory.
/// \returns sum of -log p over all predicted tokens
double collect_resident(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                        const Wanted& wanted, const Unfinished& unfinished, double save_every,
                        std::vector<LayerStatistics>& layers);

/// Takes all batches through layer by layer, forward and then backward. Activations between the layers are
/// kept in files. Each layer's sums are the parts "forward-<l>" and "backward-<l>" of the unfinished work.
double collect_streamed(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                        const Wanted& wanted, const Unfinished& unfinished);
/// Loads the sums of one layer that collect_streamed() saved.
LayerStatistics load_streamed(const ModelSpec& spec, int64_t layer, const Wanted& wanted,
                              const Unfinished& unfinished);

/// Sums of -log p over the predicted tokens, for the whole model and without each layer.
struct RemovalSums {
  double nll = 0;
  std::vector<double> without;  ///< [n_layers]
};
/// Measures the loss without each layer. The model without layer l shares all layers before l with the whole
/// model, so these run once. The work goes layer by layer, so that a streamed model is read once; its
/// activations are kept in a file beside the unfinished work.
RemovalSums measure_removal(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                            const Unfinished& unfinished);

}  // namespace elastify::profile
