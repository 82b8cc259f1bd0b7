#pragma once

#include <vector>

#include "base/output_lock.h"
#include "cli/commands.h"

namespace elastify::cli {

/// Checks that the command may write `output`, says what it replaces, and keeps other processes away from it
/// for as long as the result lives.
/// \param inputs  the files that the command reads, besides those that the options name
/// \throws UsageError  as pipeline::require_writable() and OutputLock
[[nodiscard]] OutputLock claim(const Invocation& call, const fs::path& output, std::vector<fs::path> inputs);

}  // namespace elastify::cli
