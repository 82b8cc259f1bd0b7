#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "nn/options.h"

namespace elastify::pipeline {

/// A claim about an output and whether it holds.
struct Finding {
  std::string claim;  ///< "undoing the permutation gives the source tensors, bit for bit"
  bool holds = false;
  std::string detail;  ///< what was compared; the first difference if it does not hold
};

struct VerifyOptions {
  double tolerance = 1e-4;  ///< of logits, relative to their standard deviation, float32
  int64_t tokens = 64;      ///< length of the sequence that logits are compared on
  int64_t seed = 0;
};

/// Checks a reordered directory or an artifact against the model it was made from: hashes (artifact), spec,
/// permutation, every tensor bit for bit, every level a prefix of the full model bytewise, and float32 logits
/// before and after. Stops at the first claim that fails.
/// \param path  a directory, or the packed file in one
/// \throws Error  if something cannot be read at all
std::vector<Finding> verify(const fs::path& path, const fs::path& model, const VerifyOptions& options,
                            const nn::DecoderOptions& compute);

}  // namespace elastify::pipeline
