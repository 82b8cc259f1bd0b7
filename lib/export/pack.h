#pragma once

#include "base/file.h"

// What turns an artifact's plain files, as export_model() wrote them, into other layouts of the same bytes.

namespace elastify::exporter {

/// Puts an artifact's models, adapters and importance matrices into one model.gguf. What a level's file
/// shares with full.gguf is found by comparing bytes, so that slicing gives back every file bit for bit.
/// manifest.json keeps listing the plain files and gets an entry `packed`.
/// \param directory  of the artifact; the plain files are removed from it
/// \throws Error  if the artifact has no or several full models, or a level below the full model a file of
///   more than two dimensions per tensor
void pack(const fs::path& directory);

/// Moves the tensors outside of the layers (embedding, output, their norm, rope factors), which all models of
/// an artifact have in common, into common.gguf. Every model becomes a split of two,
/// `level-050-00001-of-00002.gguf` with its keys and layers, and `level-050-00002-of-00002.gguf`, a symbolic
/// link to common.gguf (a copy where the file system takes no links). manifest.json lists the first parts,
/// and common.gguf under `common`.
/// \throws Error  if a model's tensors outside of the layers are not the full model's
void share_common(const fs::path& directory);

}  // namespace elastify::exporter
