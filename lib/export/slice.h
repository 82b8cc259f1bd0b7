#pragma once

#include <string>

#include "export/packed.h"

namespace elastify::exporter {

/// Writes a level's own file out of a packed one: the bytes that exporting to separate files gives, which is
/// checked by hash before the file appears under its name.
/// \returns its SHA-256
/// \throws Error  if the packed file is damaged, naming what of it
std::string slice(const PackedFile& packed, const PackedLevel& level, const fs::path& output);

/// The same with the level's adapter in its weights: W + alpha / rank B A in float32, encoded in the type
/// that the file has W in. The file says so under elastify.repairs ("baked", since these tensors are no
/// prefix any more) and elastify.merged_adapter.
/// \returns its SHA-256
/// \throws UsageError  if the level has no adapter
/// \throws Error  as slice(); naming the tensor, if the adapter does not fit it or its type has no encoder
std::string slice_merged(const PackedFile& packed, const PackedLevel& level, const fs::path& output);

/// Writes an embedded file as a file of its own.
/// \throws Error  if it is damaged
void extract(const PackedFile& packed, const EmbeddedFile& file, const fs::path& output);

/// Writes all plain files that were packed: models, adapters, importance matrices.
/// \param directory  exists
void unpack(const PackedFile& packed, const fs::path& directory);

}  // namespace elastify::exporter
