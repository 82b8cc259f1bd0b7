#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/dtype.h"
#include "model/spec.h"
#include "plan/latency_table.h"

namespace elastify::plan {

/// The quantity of which levels are shares.
struct Budget {
  enum class Kind : uint8_t {
    kDecoder,  ///< the weights in decoder layers
    kParams,   ///< all weights, embeddings and output included
    kBytes,    ///< the bytes of all tensors: matrices in `type`, vectors (norms, biases) in f32
    kLatency,  ///< the time per token, as measured on a device
  };
  Kind kind = Kind::kDecoder;
  DType type = DType::kF16;                 ///< kBytes
  fs::path table = {};                      ///< kLatency: a table from `llama-bench -o json`
  LatencyPhase phase = LatencyPhase::kGen;  ///< kLatency
};

/// Parses "decoder", "params", "bytes:TYPE", "latency:FILE.json" or "latency:FILE.json:prompt" (or ":gen",
/// the default).
/// \throws UsageError
Budget parse_budget(std::string_view text);
/// The inverse of parse_budget().
std::string to_text(const Budget& budget);

/// The weight of sub-models under a budget: a constant, and an amount for each unit of a space. All weights
/// are whole numbers. Their unit is one parameter, or for a budget in bytes, one byte divided by the block
/// size of the type.
class Scale {
 public:
  /// Reads the table of a latency budget.
  /// \throws Error  if the file is not such a table, or does not cover the full model
  Scale(const ModelSpec& spec, const Budget& budget);

  int64_t fixed() const { return fixed_; }
  int64_t full() const { return full_; }
  int64_t per_unit(size_t space) const { return per_unit_[space]; }
  /// The weight of the space at this width. A dropped space (0) also loses its norm.
  int64_t of(size_t space, int64_t width) const {
    return width * per_unit_[space] + (width > 0 ? with_space_[space] : 0);
  }
  int64_t of(const Widths& widths) const;
  /// The weight that a level of this nominal share aims at.
  /// \throws Error  if a latency is below the measured range
  int64_t target(double nominal) const;
  /// The share that is compared with `nominal`: of the full model's weights, bytes or latency.
  double share(int64_t weight) const;
  double share(const Widths& widths) const { return share(of(widths)); }
  /// "decoder weights", for messages.
  const std::string& noun() const { return noun_; }

 private:
  std::string noun_;
  int64_t fixed_ = 0, full_ = 0;
  std::vector<int64_t> per_unit_, with_space_;  ///< [spaces]
  std::optional<LatencyTable> latency_;
};

}  // namespace elastify::plan
