#pragma once

#include <cstdint>

#include "model/spec.h"
#include "profile/options.h"

namespace elastify::profile {

/// Memory that profiling takes on the CPU in float32, in bytes. It is an upper estimate.
struct MemoryNeed {
  int64_t resident = 0;  ///< with all weights in memory
  int64_t streamed = 0;  ///< layer by layer
};
MemoryNeed memory_need(const ModelSpec& spec, const ProfileOptions& options);

/// Whether the model must be streamed.
/// \throws UsageError  if even streaming does not fit into `max_ram` (0: no limit)
bool must_stream(const ModelSpec& spec, const ProfileOptions& options, int64_t max_ram);

}  // namespace elastify::profile
