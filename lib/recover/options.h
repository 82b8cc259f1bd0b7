#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace elastify::recover {

/// What makes up for the units that a level leaves out.
enum class Compensation : uint8_t {
  kNone = 0,
  kBias = 1,     ///< a constant per output of o and down
  kNorm = 2,     ///< weights of the output norm: the level is as sure of its predictions as the full model
  kAdapter = 4,  ///< a rank-r matrix beside o and down: the base weights stay shared
  kBaked = 8,    ///< refitted o and down: the level shares these no more
  kAdapterBias = kAdapter | kBias,
  kBakedBias = kBaked | kBias,
};
constexpr bool has(Compensation whole, Compensation part) {
  return (static_cast<unsigned>(whole) & static_cast<unsigned>(part)) != 0;
}
/// "adapter+bias+norm"; adapters and baked weights exclude each other.
std::string name_of(Compensation compensation);
/// All that there are: "none", "bias", ...
std::vector<std::string> compensation_names();
/// In any order of the parts: "norm+baked" is "baked+norm".
/// \throws UsageError listing the known names
Compensation compensation_named(std::string_view name);

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
