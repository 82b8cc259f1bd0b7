#pragma once

#include <vector>

#include "data/vocabulary.h"
#include "export/architecture.h"
#include "export/weight_type.h"
#include "io/gguf.h"
#include "model/checkpoint.h"

namespace elastify::exporter {

/// Keys that all files of an artifact share: name and licence of the model, and the tokenizer's (from
/// tokenizer.gguf or a GGUF source verbatim, else from the vocabulary, padded to one token per row of the
/// embedding).
/// \throws Error  if there are more tokens than rows
GgufMetadata shared_keys(const Checkpoint& source, const Vocabulary* vocabulary);

/// general.* and {architecture}.* keys of a model of exactly these dimensions, in the types that llama.cpp
/// insists on.
GgufMetadata model_keys(const ModelSpec& model, const GgufArchitecture& architecture, const WeightType& type);

/// The tensor's name in files of this architecture. q, k and v have the same name if the architecture fuses
/// them.
std::string name_in_file(const TensorSpec& tensor, const GgufArchitecture& architecture);

/// The tensors of the model's file: rope_freqs.weight if the frequencies are scaled unevenly, then the spec's
/// in order. q, k and v are one tensor if the architecture fuses them.
/// \param fused_qkv  see WeightType::of()
std::vector<TensorInfo> gguf_tensors(const ModelSpec& model, const GgufArchitecture& architecture,
                                     const WeightType& type, bool fused_qkv);

/// Divisors of the rotary frequencies for rope_freqs.weight; empty if the file has no such tensor.
std::vector<float> rope_factors(const ModelSpec& model);

}  // namespace elastify::exporter
