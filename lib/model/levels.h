#pragma once

#include <string_view>
#include <vector>

#include "options/codec.h"

namespace elastify {

/// Nominal levels have six decimals: levels that differ by less are one level.
inline constexpr double kLevelRounding = 1e6;

/// "0.9,0.7,0.5", "0.2:1.0:0.1" (low:high:step) or both mixed; in rising order. The full model (1) is always
/// among them.
/// \throws UsageError
std::vector<double> parse_levels(std::string_view text);

/// In rising order, without duplicates, the full model included.
/// \throws UsageError  for levels outside (0, 1]
std::vector<double> normalised_levels(std::vector<double> levels);

/// The codec of options that are lists of levels. A YAML list means the same as the text form.
options::Codec<std::vector<double>> levels_codec();

}  // namespace elastify
