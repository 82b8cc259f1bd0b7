#pragma once

#include "model/spec.h"
#include "pipeline/config.h"

namespace elastify::pipeline {

/// Changes the values of defaults and presets that do not fit the model, and logs one line for each:
/// sequences longer than its context, a grid coarser than its MLP, levels below its narrowest sub-model, a
/// rank near its width.
/// \throws UsageError  if the user gave such a value, with both numbers
void fit_to_model(RunConfig& config, const ModelSpec& spec);

}  // namespace elastify::pipeline
