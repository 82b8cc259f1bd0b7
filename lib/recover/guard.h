#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/decoder.h"

namespace elastify::recover {

/// Held-out text: token ids by source, int64 [B, T] each. Nothing was fitted on it.
struct HeldOutText {
  std::vector<std::vector<at::Tensor>> sources;
  bool is_empty() const;
};

/// The part of a level's repairs that was kept, and the measurements behind it.
struct Verdict {
  int64_t n_matrices = 0;               ///< fitted matrices
  int64_t n_shrunk = 0, n_dropped = 0;  ///< of these, each judged by its own error
  double share = 1;                     ///< kept of the rest; 0: at most an output norm
  bool keeps_norm = false;
  /// Divergence from the full model on held-out text, nats per token: without repairs, with all repairs that
  /// passed the check of single matrices, and with the kept share.
  double without = 0, fitted = 0, kept = 0;
};

/// Keeps the share of every level's repairs that helps most on held-out text: all, three quarters, half, a
/// quarter or nothing. The share scales adapters, biases, the change of refitted weights and the change of
/// the output norm. The criterion is the Kullback-Leibler divergence of the level from the full model, with
/// equal weight for each source. Repairs are kept only if the mean divergence falls by more than twice its
/// standard error, and no source's mean rises. If all text is of one source, repairs of layers must also
/// lower the divergence by at least 15%, because on other kinds of text their gain is smaller by about that
/// much. If less than all is kept, the output norm is fitted again to the kept repairs, if the level had one.
/// \param decoder  the full model, units in order of importance
/// \param text     at least one sequence; all of one length
/// \param batches  calibration text, for output norms
/// \param levels   widths of each
/// \param repairs  of each level; receives the kept ones, none if the level is better without
/// \param verdicts  of each level; all fields but the counts of matrices are filled in
void guard_levels(const nn::Decoder& decoder, const HeldOutText& text, const std::vector<at::Tensor>& batches,
                  const std::vector<Widths>& levels, std::vector<nn::LevelRepair>& repairs,
                  std::vector<Verdict>& verdicts);

}  // namespace elastify::recover
