#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace elastify::recover {

/// What makes up for the units that a level leaves out.
enum class Compensation : uint8_t {
  kNone,
  kBias,         ///< a constant per output of o and down
  kAdapter,      ///< a rank-r matrix beside o and down: the base weights stay shared
  kAdapterBias,  ///< both
  kBaked,        ///< refitted o and down: the level shares these no more
  kBakedBias,    ///< and a constant
};
std::string_view name_of(Compensation compensation);
/// \throws UsageError listing the known names
Compensation compensation_named(std::string_view name);

struct ClosedFormOptions {
  Compensation compensation = Compensation::kNone;
  int64_t rank = 16;  ///< of every adapter
  /// Pull towards the weights as they are, in units of the inputs' mean square; 0: of five sizes, for each
  /// projection the one that errs least on every fifth batch, held out.
  double ridge = 0;
  /// Fit on inputs of the already narrowed and repaired layers below, not on the full model's. None: unless
  /// there are adapters, of whose low rank that asks too much (docs/quality.md).
  std::optional<bool> sequential;
  /// Fit the residual stream of the full model, not only the projection's output. None: as above.
  std::optional<bool> whole_stream;
  bool weigh_tokens = true;  ///< a token's error counts by the inverse of its stream's mean square
};

/// With everything decided that was left open.
inline ClosedFormOptions resolved(ClosedFormOptions options) {
  const bool follows =
      options.compensation != Compensation::kAdapter && options.compensation != Compensation::kAdapterBias;
  options.sequential = options.sequential.value_or(follows);
  options.whole_stream = options.whole_stream.value_or(follows);
  return options;
}

}  // namespace elastify::recover
