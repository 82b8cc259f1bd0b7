#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/plan.h"
#include "model/repair.h"

// What all kinds of export ask of a plan's levels.

namespace elastify::exporter {

/// What a level's file or directory is called: "level-050"; "full" for the full model.
std::string level_stem(double nominal);
/// Of what lies beside such a file: "lora" + "-050"; "" for the full model.
std::string level_suffix(double nominal);

/// Those asked for, or all where none is, and always the full model; from wide to narrow.
/// \throws UsageError  for a level that the plan does not have
std::vector<Level> chosen_levels(const ElasticPlan& plan, const std::vector<double>& asked);

/// Null where there are none; the full model has none.
const LevelRepairs* repairs_of(const Level& level, const std::vector<LevelRepairs>& all);

/// The leading bytes of each row.
/// \param rows  whole rows of `row` bytes
/// \param kept  bytes, at most `row`
/// \param buffer  holds the result where that is a copy; reused from call to call
std::span<const std::byte> leading_of_rows(std::span<const std::byte> rows, uint64_t row, uint64_t kept,
                                           std::vector<std::byte>& buffer);

}  // namespace elastify::exporter
