#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"

namespace elastify::plan {

/// Reading a prompt, or generating tokens one by one.
enum class LatencyPhase : uint8_t { kGen, kPrompt };

/// Time per token over the number of parameters, as measured for models of one architecture: piecewise
/// linear between the measured points, and never falling (points that contradict that are averaged: isotonic
/// regression by pooling adjacent violators).
class LatencyTable {
 public:
  /// Reads what `llama-bench -o json` wrote: a list of objects with model_n_params, n_prompt, n_gen and
  /// avg_ns (of the whole test, ns) or avg_ts (tokens/s). Rows of the other phase are left out, rows of one
  /// model averaged.
  /// \throws Error  for a file without two models in this phase, or rows that were measured under different
  ///   settings
  LatencyTable(const fs::path& path, LatencyPhase phase);

  /// ns per token. The nearest measured point's for numbers outside of the range.
  double at(int64_t n_params) const;
  /// The most parameters that take this long.
  /// \throws Error  outside of the measured range
  int64_t params_at(double ns) const;
  bool covers(int64_t n_params) const;
  /// "29.1M to 134.5M parameters (2.10 to 8.31 ms per token)"
  std::string range() const;
  double least_ns() const { return points_.front().ns; }

 private:
  struct Point {
    int64_t n_params;
    double ns;
  };
  std::vector<Point> points_;  ///< rising, at least two
};

}  // namespace elastify::plan
