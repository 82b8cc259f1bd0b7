#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"

namespace elastify::plan {

/// The phase that was measured: generating tokens one by one, or reading a prompt.
enum class LatencyPhase : uint8_t { kGen, kPrompt };

/// Time per token as a function of the number of parameters, measured on models of one architecture. It is
/// piecewise linear between the measured points and never falls. Points that contradict that are averaged
/// (isotonic regression by pooling adjacent violators).
class LatencyTable {
 public:
  /// Reads the output of `llama-bench -o json`: a list of objects with model_n_params, n_prompt, n_gen and
  /// avg_ns (of the whole test, ns) or avg_ts (tokens/s). Rows of the other phase are left out. Rows of the
  /// same model are averaged.
  /// \throws Error  for a file without two models in this phase, or with rows that were measured under
  ///                different settings
  LatencyTable(const fs::path& path, LatencyPhase phase);

  /// Time per token in ns. Outside of the range it is that of the nearest measured point.
  double at(int64_t n_params) const;
  /// The most parameters that take no longer than this.
  /// \throws Error  outside of the measured range
  int64_t params_at(double ns) const;
  bool covers(int64_t n_params) const;
  /// "29100000 to 134500000 parameters, 2.1 to 8.31 ms per token"
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
