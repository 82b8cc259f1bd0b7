#pragma once

#include "base/file.h"
#include "model/manifest.h"

namespace elastify::exporter {

/// Moves the tensors outside of the layers (embedding, output, rope factors), which all models of an artifact
/// share, into common.gguf. Every model becomes a split of two: `level-050-00001-of-00002.gguf` with its keys
/// and layers, and `level-050-00002-of-00002.gguf`, a symbolic link to common.gguf (a copy if the file system
/// takes no links). The output norm stays with the layers, because levels may have their own.
/// \param directory  of the artifact; the plain files are removed from it
/// \param manifest  lists the plain files; updated to list the first parts, and common.gguf as `common`
/// \throws Error  if a model's tensors outside of the layers are not the full model's
void share_common(const fs::path& directory, Manifest& manifest);

}  // namespace elastify::exporter
