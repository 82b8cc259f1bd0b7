#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "options/codec.h"

namespace elastify::pipeline {

/// The rank in a preset that means an eighth of the model's width. It is resolved when the model is known.
inline constexpr std::string_view kEighthOfWidth = "d/8";

/// A named choice of options. A user can override single options.
struct Preset {
  std::string_view name, help;
  std::vector<std::pair<std::string_view, std::string_view>> values;  ///< key and value, as in YAML
};
const std::vector<Preset>& presets();
/// \throws UsageError  listing the known names
const Preset& preset_named(std::string_view name);
std::vector<options::Choice> preset_choices();

}  // namespace elastify::pipeline
