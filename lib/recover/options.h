#pragma once

#include <cstdint>
#include <optional>

#include "model/compensation.h"
#include "options/forward.h"

namespace elastify::recover {

struct ClosedFormOptions {
  Compensation compensation = Compensation::kNone;
  int64_t rank = 16;  ///< of every adapter; spread ranks have the same total size
  /// Gives more rank to the matrices where it helps most on the calibration text. This can be worse on other
  /// text (docs/quality.md).
  bool spread_ranks = false;
  /// Ridge towards the unrepaired weights, in units of the inputs' mean square. 0: choose among five sizes,
  /// for each projection, by the error on held-out batches (every fifth; the last one if there are fewer).
  double ridge = 0;
  /// Fit on inputs from the already narrowed and repaired layers below, not on the full model's. None: true,
  /// but false for adapters without an output norm. Such fits shrink the stream, and the norm would amplify
  /// the errors that a low rank leaves (docs/quality.md).
  std::optional<bool> sequential;
  /// Fit the residual stream of the full model, not only the projection's output. None: as for `sequential`.
  std::optional<bool> whole_stream;
  /// Shrink or drop repairs that do not help on held-out text. First each matrix's change is judged by its
  /// error on every fifth batch. Then each level's repairs are judged by the level's divergence from the full
  /// model on text that nothing was fitted on (guard_levels()).
  bool guard = false;
  bool weigh_tokens = true;  ///< a token's error counts by the inverse of its stream's mean square
};
void declare(options::Options& options, ClosedFormOptions& fields);

/// The options with `sequential` and `whole_stream` decided.
inline ClosedFormOptions resolved(ClosedFormOptions options) {
  const bool follows =
      !has(options.compensation, Compensation::kAdapter) || has(options.compensation, Compensation::kNorm);
  options.sequential = options.sequential.value_or(follows);
  options.whole_stream = options.whole_stream.value_or(follows);
  return options;
}

}  // namespace elastify::recover
