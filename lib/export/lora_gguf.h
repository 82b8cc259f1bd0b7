#pragma once

#include <string>

#include "io/gguf.h"
#include "model/repair.h"

namespace elastify::exporter {

/// The adapter that belongs to a level's file: "lora-050.gguf".
std::string lora_name(double nominal);

/// The number that llama.cpp scales all adapters of the file by, over each one's rank: the largest rank.
/// Adapters of a smaller rank have the difference in their b.
float lora_alpha(const LevelRepairs& repairs);

/// Writes the level's adapters as stock llama.cpp loads them: matrices `<tensor>.lora_a` [rank, columns] and
/// `<tensor>.lora_b` [D, rank], keys general.type, general.architecture, adapter.type, adapter.lora.alpha.
/// \param architecture  of the level's file
/// \param keys  further keys
/// \param type  f32 or f16
/// \returns the file's SHA-256
/// \throws Error  naming the tensor, if a number is too large for f16
std::string write_lora(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                       std::string_view architecture, const GgufMetadata& keys, DType type,
                       const fs::path& path);
/// Elements of all its matrices.
int64_t n_lora_params(const LevelRepairs& repairs);

/// The adapters of such a file, scale alpha / rank included in b; biases and weights are none.
/// \param model  the level's own dimensions
/// \param architecture  of the level's file
/// \throws Error  naming file, tensor and both values
LevelRepairs read_lora(const fs::path& path, const ModelSpec& model, std::string_view architecture,
                       double nominal);

}  // namespace elastify::exporter
