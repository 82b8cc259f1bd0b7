#pragma once

#include <cstdint>
#include <optional>

#include "model/compensation.h"

namespace elastify::recover {

struct ClosedFormOptions {
  Compensation compensation = Compensation::kNone;
  int64_t rank = 16;  ///< of every adapter; spread, all together are as large as if it were
  /// Adapters' ranks go where they count most on the calibration text. That may lose on other text
  /// (docs/quality.md).
  bool spread_ranks = false;
  /// Pull towards the weights as they are, in units of the inputs' mean square; 0: of five sizes, for each
  /// projection the one that errs least on every fifth batch, or of fewer the last, held out.
  double ridge = 0;
  /// Fit on inputs of the already narrowed and repaired layers below, not on the full model's. None: unless
  /// there are adapters without an output norm: such fits shrink the stream, and the norm would blow up what
  /// a low rank leaves of it (docs/quality.md).
  std::optional<bool> sequential;
  /// Fit the residual stream of the full model, not only the projection's output. None: as above.
  std::optional<bool> whole_stream;
  bool weigh_tokens = true;  ///< a token's error counts by the inverse of its stream's mean square
};

/// With everything decided that was left open.
inline ClosedFormOptions resolved(ClosedFormOptions options) {
  const bool follows =
      !has(options.compensation, Compensation::kAdapter) || has(options.compensation, Compensation::kNorm);
  options.sequential = options.sequential.value_or(follows);
  options.whole_stream = options.whole_stream.value_or(follows);
  return options;
}

}  // namespace elastify::recover
