#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "export/architecture.h"
#include "export/weight_type.h"
#include "io/gguf.h"
#include "model/checkpoint.h"
#include "model/imatrix.h"
#include "model/plan.h"
#include "model/repair.h"

namespace elastify::exporter {

/// What weighs errors of a tensor's columns while it is encoded: mean squares of its inputs, [columns], by
/// the name of the tensor in the full model's spec; of the columns' leading part in a level.
using ColumnImportance = std::map<std::string, std::vector<float>, std::less<>>;

/// Out of an importance matrix in the order of the model; nothing out of none.
ColumnImportance column_importance(const std::optional<Imatrix>& imatrix, const ModelSpec& spec);

/// A file to be filled.
struct TensorSink {
  const Level* level = nullptr;
  const GgufArchitecture* architecture = nullptr;
  const LevelRepairs* repairs = nullptr;  ///< null: none
  WeightType type = DType::kF16;
  GgufWriter* writer = nullptr;
  GgufWriter* part = nullptr;  ///< gets those of the file's tensors that it lists, too; null: none
};

/// Bytes of the current tensor of the file, and of the part if it lists the tensor.
void write(const TensorSink& sink, std::span<const std::byte> bytes);

/// Fills all files in one pass over the model. Tensors are cut into slabs of rows; each is decoded, encoded
/// once per type and order of rows, and every file takes the prefix of rows and blocks that it keeps. Slabs
/// are encoded, and files hashed and written, on all threads at once, each file in order. Pages of the source
/// are let go as they are consumed.
/// \param fused_qkv  see WeightType::of()
/// \param max_ram  of this process, bytes; 0: slabs of at most 2^19 elements, two per thread and two more
/// \throws Error  naming the tensor; UsageError if the smallest slabs need more than `max_ram`
void write_tensors(const Checkpoint& source, const std::vector<TensorSink>& sinks, bool fused_qkv,
                   const ColumnImportance& importance, int64_t max_ram);

}  // namespace elastify::exporter
