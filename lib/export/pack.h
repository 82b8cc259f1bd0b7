#pragma once

#include <set>
#include <string>
#include <vector>

#include "export/architecture.h"
#include "export/packed.h"
#include "io/gguf.h"
#include "model/spec.h"

// Writing packed files, see packed.h. The files that the levels would have of their own are described and
// hashed, and never written.

namespace elastify::exporter {

/// A model's file as `export` without packing writes it, but for the tensors' bytes.
struct PlainFile {
  ModelSpec model;  ///< of exactly these dimensions
  const GgufArchitecture* architecture = nullptr;
  GgufMetadata keys;
  std::vector<TensorInfo> tensors;
};

/// Keys and tensors of a part.
struct PartHeader {
  GgufMetadata keys;  ///< the level's where they differ from full.gguf's, and elastify.part.*
  std::vector<TensorInfo> tensors;
};

/// What packing keeps of a level: what is no leading part of the full model's tensors.
/// \param replaced  names of those of the level's tensors that hold something else than the model's
PartHeader part_header(const PlainFile& full, const PlainFile& level, const std::set<std::string>& replaced);

/// What a packed file holds besides the model.
struct PackedContents {
  std::vector<PackedLevel> levels;     ///< narrowest first, the full model last
  std::vector<EmbeddedFile> embedded;  ///< offsets are found out while packing
};

/// Writes model.gguf. Hashes are asked for at the end, so that everything is written in one pass.
class PackedWriter {
 public:
  /// \param contents  without hashes
  PackedWriter(const fs::path& path, const PlainFile& full, PackedContents contents);
  /// For the tensors of the full model.
  GgufWriter& model() { return writer_; }
  /// Of what was given, for putting the hashes in.
  PackedContents& contents() { return contents_; }
  /// Takes in the embedded files, which lie beside the packed one and are removed there.
  /// \returns the packed file's SHA-256
  std::string finish();
  uint64_t size() const { return writer_.size(); }

 private:
  GgufMetadata keys() const;

  fs::path directory_;
  GgufMetadata model_keys_;
  RopeOrder rope_;
  PackedContents contents_;
  GgufWriter writer_;
};

}  // namespace elastify::exporter
