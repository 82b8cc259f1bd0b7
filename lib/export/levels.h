#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/plan.h"
#include "model/repair.h"

// Names and choice of a plan's levels, for all kinds of export.

namespace elastify::exporter {

/// The name of a level's file or directory, without extension: "level-050"; "full" for the full model.
std::string level_stem(double nominal);
/// The suffix of files beside it: "-050", as in "lora-050"; "" for the full model.
std::string level_suffix(double nominal);

/// The levels asked for, or all if `asked` is empty, and always the full model; from wide to narrow.
/// \throws UsageError  for a level that the plan does not have
std::vector<Level> chosen_levels(const ElasticPlan& plan, const std::vector<double>& asked);

/// The level's repairs; null if it has none, as the full model.
const LevelRepairs* repairs_of(const Level& level, const std::vector<LevelRepairs>& all);

/// The leading bytes of each row.
/// \param rows  whole rows of `row` bytes
/// \param kept  bytes, at most `row`
/// \param buffer  holds the result if it is a copy; reused from call to call
std::span<const std::byte> leading_of_rows(std::span<const std::byte> rows, uint64_t row, uint64_t kept,
                                           std::vector<std::byte>& buffer);

}  // namespace elastify::exporter
