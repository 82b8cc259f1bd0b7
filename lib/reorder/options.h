#pragma once

#include <cstdint>
#include <string>

#include "options/forward.h"

namespace elastify::reorder {

struct ReorderOptions {
  /// Stored type of the output: f32, f16 or bf16. Empty: Checkpoint::lossless_dtype(), which loses nothing.
  std::string dtype;
  uint64_t shard_bytes = uint64_t{4} << 30;  ///< larger models are written in several files
};
/// Declares `storage`.
void declare(options::Options& options, ReorderOptions& fields);

}  // namespace elastify::reorder
