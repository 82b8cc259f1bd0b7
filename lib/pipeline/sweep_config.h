#pragma once

#include <string>
#include <vector>

#include "pipeline/config.h"
#include "report/sweep_view.h"

namespace elastify::pipeline {

struct SweepPoint {
  std::vector<std::string> values;  ///< one per axis of the grid
  RunConfig config;                 ///< with these values in it
};

/// A run's options and a grid over some of them.
struct SweepConfig {
  RunConfig base;                                  ///< `export` and `eval.baseline` are not part of a sweep
  std::vector<report::SweepAxis> grid;             ///< rows first, if there are any
  std::vector<std::vector<std::string>> row_keys;  ///< the options that each row sets
  std::vector<SweepPoint> points;                  ///< all combinations, the last axis fastest
};

/// Reads a sweep's YAML: that of a run, with a section `grid`, a list `rows`, or both. `grid` maps options to
/// lists of values, as in `reorder.metric: [taylor, magnitude]`. `rows` lists sets of options, each with a
/// `name`. With both, every row is combined with every point of the grid. Points may differ in `seed`,
/// `preset` and the options of `profile` and `reorder`; the model, the held-out text and the levels are the
/// same for all points.
/// \throws UsageError  as load_config(), also for every value of every axis
SweepConfig load_sweep(const fs::path& file, const std::vector<std::string>& overrides = {});

/// The options of the base, and the values of the grid and the rows.
nlohmann::ordered_json to_json(const SweepConfig& config);

}  // namespace elastify::pipeline
