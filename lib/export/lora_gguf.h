#pragma once

#include <string>
#include <vector>

#include "export/architecture.h"
#include "io/gguf.h"
#include "model/repair.h"

// A level's adapters as stock llama.cpp loads them, in a GGUF file of their own.

namespace elastify::exporter {

/// The adapter that belongs to a level's file: "lora-050.gguf".
std::string lora_name(double nominal);

/// The adapter of one matrix of the level's file: b a is added to it.
struct LoraMatrix {
  std::string name;  ///< of the matrix in the level's file: "blk.0.attn_q.weight"
  HostTensor a, b;   ///< f32, [rank, in], [out, rank]; rows of b as those of the matrix
  int64_t rank() const { return a.shape[0]; }
};
/// The level's adapters as its file needs them. Rows of q and k are in the file's rotary order. Where q, k
/// and v are one matrix, so is their adapter: their a below each other, their b as blocks along the diagonal.
std::vector<LoraMatrix> lora_matrices(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                                      const GgufArchitecture& architecture);
/// Elements of all of them.
int64_t n_lora_params(const std::vector<LoraMatrix>& matrices);

/// Writes them: matrices `<name>.lora_a` and `<name>.lora_b`, keys general.type, general.architecture,
/// adapter.type, adapter.lora.alpha. Runtimes scale each by alpha over its rank: alpha is the largest rank,
/// and adapters of a smaller one have the difference in their b.
/// \param keys  further keys
/// \param type  f32 or f16
/// \returns the file's SHA-256
/// \throws Error  naming the tensor, if a number is too large for f16
std::string write_lora(const std::vector<LoraMatrix>& matrices, const GgufArchitecture& architecture,
                       const GgufMetadata& keys, DType type, const fs::path& path);

/// The adapters of such a file, with the scale alpha / rank in b. Ranks of a joint adapter of q, k and v
/// that do nothing for one of them are left out of that one's.
/// \param model  the level's own dimensions
/// \param architecture  of the level's file
/// \throws Error  naming file, tensor and both values
LevelRepairs read_lora(const fs::path& path, const ModelSpec& model, const GgufArchitecture& architecture,
                       double nominal);

}  // namespace elastify::exporter
