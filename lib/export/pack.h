#pragma once

#include <set>
#include <string>
#include <vector>

#include "export/architecture.h"
#include "export/packed.h"
#include "io/gguf.h"
#include "model/spec.h"

// Writes packed files, see packed.h. The separate files of the levels are described and hashed, but never
// written.

namespace elastify::exporter {

/// The description of a model's file as `export` writes it without packing: all but the tensors' bytes.
struct PlainFile {
  ModelSpec model;  ///< of exactly the file's dimensions
  const GgufArchitecture* architecture = nullptr;
  GgufMetadata keys;
  std::vector<TensorInfo> tensors;
};

/// Keys and tensors of a part.
struct PartHeader {
  GgufMetadata keys;  ///< the level's keys that differ from full.gguf's, and elastify.part.*
  std::vector<TensorInfo> tensors;
};

/// The part of a level in a packed file: its keys, and the tensors that are not leading parts of the full
/// model's.
/// \param replaced  names of the level's tensors that repairs replace
PartHeader part_header(const PlainFile& full, const PlainFile& level, const std::set<std::string>& replaced);

/// The contents of a packed file besides the model.
struct PackedContents {
  std::vector<PackedLevel> levels;     ///< narrowest first, the full model last
  std::vector<EmbeddedFile> embedded;  ///< offsets are filled in while packing
};

/// Writes model.gguf. Hashes are needed only at the end, so that everything is written in one pass.
class PackedWriter {
 public:
  /// \param contents  without hashes
  PackedWriter(const fs::path& path, const PlainFile& full, PackedContents contents);
  /// The writer for the tensors of the full model.
  GgufWriter& model() { return writer_; }
  /// The contents given to the constructor. The caller sets their hashes before finish().
  PackedContents& contents() { return contents_; }
  /// Appends the embedded files, which lie beside the packed one, and removes them.
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
