#pragma once

#include <string_view>

#include "model/rope_order.h"
#include "model/spec.h"

namespace elastify::exporter {

/// An architecture of stock llama.cpp, as far as its files differ from the others'.
struct GgufArchitecture {
  std::string_view name;
  RopeOrder rope;          ///< order of the rows of q and k
  bool fused_qkv = false;  ///< attn_qkv with rows q | k | v instead of three tensors
};

/// One of those that levels are written as.
/// \throws Error  naming it
const GgufArchitecture& architecture_named(std::string_view name);

/// The architecture for a model of exactly these dimensions: see gguf_architecture().
const GgufArchitecture& choose_architecture(const ModelSpec& model);

}  // namespace elastify::exporter
