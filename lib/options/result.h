#pragma once

#include <cstdint>

namespace elastify::options {

/// The results of the pipeline that an option can change. The key under which a result is kept is made of the
/// options that change it and of the results before it.
enum class Result : uint16_t {
  kNone = 0,            ///< how the work is done, or where its products go
  kProfile = 1,         ///< importances, removal losses, second moments
  kOrder = 2,           ///< the order of the units
  kWidths = 4,          ///< the widths of every level
  kRepairs = 8,         ///< adapters, biases, refitted weights, output norms
  kStoredWeights = 16,  ///< the tensors of the reordered directory
  kArtifact = 32,       ///< the exported files
  kProof = 64,          ///< the findings of `verify`
  kEvaluation = 128,    ///< perplexities and accuracies
};

constexpr Result operator|(Result a, Result b) {
  return static_cast<Result>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
/// Whether the two sets of results have one in common.
constexpr bool overlap(Result a, Result b) {
  return (static_cast<unsigned>(a) & static_cast<unsigned>(b)) != 0;
}

}  // namespace elastify::options
