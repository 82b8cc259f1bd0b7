#pragma once

#include <string>

#include <string_view>

#include "model/rope_order.h"
#include "model/spec.h"

namespace elastify::exporter {

/// An architecture of stock llama.cpp: the properties in which its files differ from those of others.
struct GgufArchitecture {
  std::string_view name;
  RopeOrder rope;          ///< order of the rows of q and k
  bool fused_qkv = false;  ///< attn_qkv with rows q | k | v instead of three tensors
};

/// The architecture of this name, among those that levels are written in.
/// \throws Error  naming the unknown one
const GgufArchitecture& architecture_named(std::string_view name);

/// The architecture for a model of exactly these dimensions: see gguf_architecture().
const GgufArchitecture& choose_architecture(const ModelSpec& model);

/// The GGUF architecture whose graph in stock llama.cpp computes this sub-model. It is the family's own if
/// all layers are equally wide and its loader takes the widths; otherwise deci, or openelm for tied qwen3.
/// \throws Error  with the reason if no stock architecture can compute it
std::string gguf_architecture(const ModelSpec& spec, const Widths& widths);

}  // namespace elastify::exporter
