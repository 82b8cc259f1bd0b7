#pragma once

#include "model/checkpoint.h"
#include "report/report.h"

namespace elastify::report {

/// The shape of a model, its parameters by part, its stored types and its axis spaces. `levels` in JSON is an
/// empty list, for callers to fill.
/// \param path  as the user named the model
Report view_model(const Checkpoint& checkpoint, const fs::path& path);

}  // namespace elastify::report
