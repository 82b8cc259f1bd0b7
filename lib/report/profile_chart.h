#pragma once

#include <string>

#include "report/profile_summary.h"

namespace elastify::report {

/// A profile as one SVG file: charts of the layers' sensitivity, then for each metric how much of a layer's
/// importance its best units hold.
/// \param name  of the profile's file, for the title
std::string profile_svg(const ProfileSummary& profile, const std::string& name);

}  // namespace elastify::report
