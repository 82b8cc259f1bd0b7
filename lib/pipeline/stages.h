#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "options/result.h"

namespace elastify::pipeline {

/// A stage of the pipeline. It is a command, a section of YAML files and a step of `run`. Its work is in
/// stage_work.cpp, which needs LibTorch; this table does not.
struct Stage {
  std::string_view name;                ///< the command, the section and the log prefix
  std::string_view summary;             ///< one line of help
  std::string_view product;             ///< file or directory below a run's output
  std::vector<std::string_view> needs;  ///< the stages whose products it reads; none: the source model
  /// The product's key covers the options that change these results.
  options::Result results;
};

/// All stages, each after those that it needs.
const std::vector<Stage>& stages();
const Stage& stage_named(std::string_view name);

}  // namespace elastify::pipeline
