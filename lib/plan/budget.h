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

/// What levels are shares of.
struct Budget {
  enum class Kind : uint8_t {
    kDecoder,  ///< the weights in decoder layers
    kParams,   ///< all weights, embeddings and output included
    kBytes,    ///< the bytes of all tensors: matrices in `type`, vectors (norms, biases) in f32
    kLatency,  ///< the time per token, as measured on a device
  };
  Kind kind = Kind::kDecoder;
  DType type = DType::kF16;                 ///< kBytes
  fs::path table = {};                      ///< kLatency: what `llama-bench -o json` wrote
  LatencyPhase phase = LatencyPhase::kGen;  ///< kLatency
};

/// "decoder", "params", "bytes:TYPE", "latency:FILE.json" or "latency:FILE.json:prompt" (or ":gen", which is
/// meant if neither stands there).
/// \throws UsageError
Budget parse_budget(std::string_view text);
/// What parse_budget() reads.
std::string to_text(const Budget& budget);

/// What sub-models weigh under a budget: a constant and an amount per unit of each space, in whole numbers of
/// a unit of its own (weights; for bytes, the block size of the type makes one byte).
class Scale {
 public:
  /// Reads the table of a latency.
  /// \throws Error  if that is not one, or does not cover the full model
  Scale(const ModelSpec& spec, const Budget& budget);

  int64_t fixed() const { return fixed_; }
  int64_t full() const { return full_; }
  int64_t per_unit(size_t space) const { return per_unit_[space]; }
  /// What the space weighs at this width. A dropped space (0) leaves its norm out, too.
  int64_t of(size_t space, int64_t width) const {
    return width * per_unit_[space] + (width > 0 ? with_space_[space] : 0);
  }
  int64_t of(const Widths& widths) const;
  /// What a level may weigh.
  /// \throws Error  if a latency is below the measured range
  int64_t target(double nominal) const;
  /// What `nominal` is compared with: weight, bytes or latency, as a share of the full model's.
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
