#pragma once

#include "base/file.h"
#include "report/report.h"

namespace elastify::report {

/// The contents of a profile, from its file alone: the model is not needed.
/// \param plot  SVG file to draw the profile into; empty: none
/// \throws Error  naming file and place for what is not a profile
Report view_profile(const fs::path& path, const fs::path& plot);

}  // namespace elastify::report
