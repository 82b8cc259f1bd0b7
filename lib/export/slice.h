#pragma once

#include <string>

#include "export/packed.h"

namespace elastify::exporter {

/// Writes the separate file of a level from a packed one. It has the same bytes as an export to separate
/// files; the hash is checked before the file appears under its name.
/// \returns its SHA-256
/// \throws Error  if the packed file is damaged, naming the damaged part
std::string slice(const PackedFile& packed, const PackedLevel& level, const fs::path& output);

/// Like slice(), with the level's adapter merged into its weights: W + alpha / rank B A is computed in
/// float32 and encoded in W's type. The file states this under elastify.repairs ("baked", because these
/// tensors are no longer prefixes) and elastify.merged_adapter.
/// \returns its SHA-256
/// \throws UsageError  if the level has no adapter
/// \throws Error  as slice(); naming the tensor, if the adapter does not fit it or its type has no encoder
std::string slice_merged(const PackedFile& packed, const PackedLevel& level, const fs::path& output);

/// Writes an embedded file as a separate file.
/// \throws Error  if it is damaged
void extract(const PackedFile& packed, const EmbeddedFile& file, const fs::path& output);

/// Writes all plain files that were packed: models, adapters, importance matrices.
/// \param directory  exists
void unpack(const PackedFile& packed, const fs::path& directory);

}  // namespace elastify::exporter
