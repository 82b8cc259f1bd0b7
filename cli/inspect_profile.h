#pragma once

#include "base/file.h"
#include "cli/commands.h"

namespace elastify::cli {

/// Prints what a profile holds, from the file alone: the model is not needed. With a `plot`, draws it as SVG,
/// too.
/// \throws Error  naming file and place for what is not a profile
/// \throws UsageError  if `plot` exists and `force` is false
Report inspect_profile(const fs::path& path, const fs::path& plot, bool force);

}  // namespace elastify::cli
