#pragma once

#include "data/vocabulary.h"
#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/plan.h"

namespace elastify::reorder {

struct ReorderOptions {
  /// Stored type of the output: nothing is lost with the source's own ("" = Checkpoint::lossless_dtype()).
  std::string dtype;
  uint64_t shard_bytes = uint64_t{4} << 30;  ///< larger models are written in several files
};

/// Writes a Hugging Face directory with every unit moved to its place, tensor by tensor: config.json, model.safetensors (or
/// shards and index), the tokenizer (files copied when the source is a directory, written from the vocabulary otherwise;
/// GGUF's own tokenizer keys kept verbatim in tokenizer.gguf), permutation.h5 and plan.json.
/// \param directory  an existing, empty directory
void reorder_model(const Checkpoint& source, const Vocabulary* vocabulary, const Permutation& permutation, const ElasticPlan& plan,
                   const ReorderOptions& options, const fs::path& directory);

/// True for a directory that reorder_model() wrote.
bool is_reordered(const fs::path& directory);

}  // namespace elastify::reorder
