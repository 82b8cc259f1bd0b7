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

/// Weights of the columns' errors while a tensor is encoded: mean squares of its inputs, [columns], by the
/// name of the tensor in the full model's spec. A level uses the leading part.
using ColumnImportance = std::map<std::string, std::vector<float>, std::less<>>;

/// Takes the weights from an importance matrix in the model's order; empty if there is none.
ColumnImportance column_importance(const std::optional<Imatrix>& imatrix, const ModelSpec& spec);

/// A file to write tensors to.
struct TensorSink {
  const Level* level = nullptr;
  const GgufArchitecture* architecture = nullptr;
  const LevelRepairs* repairs = nullptr;  ///< null: none
  WeightType type = DType::kF16;
  GgufWriter* writer = nullptr;
  GgufWriter* part = nullptr;  ///< also gets the file's tensors that it lists; null: none
};

/// Writes bytes of the file's current tensor, to the part as well if it lists the tensor.
void write(const TensorSink& sink, std::span<const std::byte> bytes);

/// Fills all files in one pass over the model. Tensors are cut into slabs of rows; each is decoded, encoded
/// once per type and order of rows, and every file takes the prefix of rows and blocks that it keeps. Slabs
/// are encoded, and files hashed and written, on all threads at once, each file in order. Pages of the source
/// are released as they are consumed.
/// \param fused_qkv  see WeightType::of()
/// \param max_ram  memory of this process, bytes; 0: slabs of at most 2^19 elements, two per thread and two
///   more
/// \throws Error  naming the tensor; UsageError if the smallest slabs need more than `max_ram`
void write_tensors(const Checkpoint& source, const std::vector<TensorSink>& sinks, bool fused_qkv,
                   const ColumnImportance& importance, int64_t max_ram);

}  // namespace elastify::exporter
