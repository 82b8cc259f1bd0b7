#pragma once

#include <string>
#include <vector>

#include "export/architecture.h"
#include "io/gguf.h"
#include "model/repair.h"

// Writes and reads a level's adapters as a separate GGUF file, which stock llama.cpp loads.

namespace elastify::exporter {

/// The file of a level's adapter: "lora-050.gguf".
std::string lora_name(double nominal);

/// The adapter of one matrix of the level's file. Its product b a is added to the matrix.
struct LoraMatrix {
  std::string name;  ///< of the matrix in the level's file: "blk.0.attn_q.weight"
  HostTensor a, b;   ///< f32, [rank, in], [out, rank]; rows of b in the matrix's order
  int64_t rank() const { return a.shape[0]; }
};
/// The level's adapters for its file. Rows of q and k are in the file's rotary order. If the architecture
/// fuses q, k and v, their adapters are joined: the a are stacked, the b are blocks along the diagonal.
std::vector<LoraMatrix> lora_matrices(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                                      const GgufArchitecture& architecture);
/// Number of elements of all matrices.
int64_t n_lora_params(const std::vector<LoraMatrix>& matrices);

/// Writes the matrices `<name>.lora_a` and `<name>.lora_b` and the keys general.type, general.architecture,
/// adapter.type and adapter.lora.alpha. Runtimes scale each adapter by alpha over its rank. alpha is the
/// largest rank; the b of adapters of smaller rank are scaled down to make up for it.
/// \param keys  further keys
/// \param type  f32 or f16
/// \returns the file's SHA-256
/// \throws Error  naming the tensor, if a number is too large for f16
std::string write_lora(const std::vector<LoraMatrix>& matrices, const GgufArchitecture& architecture,
                       const GgufMetadata& keys, DType type, const fs::path& path);

/// Reads the adapters of such a file, with the scale alpha / rank multiplied into b. A joint adapter of q, k
/// and v is split; each part keeps only the ranks whose columns of b are not zero there.
/// \param model  the level's own dimensions
/// \param architecture  of the level's file
/// \throws Error  naming file, tensor and both values
LevelRepairs read_lora(const fs::path& path, const ModelSpec& model, const GgufArchitecture& architecture,
                       double nominal);

}  // namespace elastify::exporter
