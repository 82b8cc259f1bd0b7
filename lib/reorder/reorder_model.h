#pragma once

#include "data/vocabulary.h"
#include "model/checkpoint.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "reorder/options.h"

namespace elastify::reorder {

/// Writes a Hugging Face directory in which every unit is moved to its place, tensor by tensor:
///   config.json             the source's own if it has one, with the stored type corrected
///   model.safetensors       or model-00001-of-0000N.safetensors and model.safetensors.index.json
///   tokenizer files         copied if the source directory has them, else written from the vocabulary
///   tokenizer.gguf          GGUF sources: the tokenizer's keys and the model's name and licence, verbatim
///   permutation.h5, plan.json
/// A source directory's model card and licence files are copied, too. It needs memory for about twice the
/// largest tensor.
/// \param vocabulary  null if the model carries none
/// \param directory   an existing, empty directory; left empty on failure
/// \throws Error       if permutation or plan belong to another model, config.json cannot describe the model,
///                     or the stored type cannot hold a value
/// \throws UsageError  for a stored type that is not a float type
void reorder_model(const Checkpoint& source, const Vocabulary* vocabulary, const Permutation& permutation,
                   const ElasticPlan& plan, const ReorderOptions& options, const fs::path& directory);

/// True for a directory that reorder_model() wrote.
bool is_reordered(const fs::path& directory);

}  // namespace elastify::reorder
