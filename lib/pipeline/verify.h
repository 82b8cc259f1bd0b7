#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "nn/options.h"
#include "pipeline/verify_options.h"

namespace elastify::pipeline {

/// A claim about an output and whether it holds.
struct Finding {
  std::string claim;  ///< "undoing the permutation gives the source tensors, bit for bit"
  bool holds = false;
  std::string detail;  ///< what was compared; the first difference if it does not hold
};

/// Checks a reordered directory or an artifact against the model it was made from: the hashes of an artifact,
/// spec and permutation, every tensor bit for bit, that every level is a bytewise prefix of the full model,
/// and float32 logits before and after. Stops at the first claim that fails.
/// \param path  a directory, or the packed file in one
/// \throws Error  if a file cannot be read
std::vector<Finding> verify(const fs::path& path, const fs::path& model, const VerifyOptions& options,
                            const nn::DecoderOptions& compute);

}  // namespace elastify::pipeline
