#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace elastify {

/// A file that was written completely.
struct WrittenFile {
  std::string name;
  uint64_t bytes = 0;
  std::string sha256;
};

/// Writes tensors as `transformers` lays out a model's weights: model.safetensors, or
/// model-00001-of-0000N.safetensors and model.safetensors.index.json. A new file begins where the next tensor
/// would exceed the limit.
class ShardedSafetensorsWriter {
 public:
  /// \param metadata  written into every file
  /// \param shard_bytes  the most tensor data in a file, unless a single tensor has more
  /// \throws Error  for names given twice and types other than f32, f16 and bf16
  ShardedSafetensorsWriter(fs::path directory, const std::vector<TensorInfo>& tensors,
                           std::map<std::string, std::string> metadata, uint64_t shard_bytes);

  /// Bytes of the next tensor, or of its next part.
  /// \throws Error  on more bytes than declared
  void write(std::span<const std::byte> bytes);
  /// \throws Error  if bytes are missing.
  /// \returns all files, the index last
  std::vector<WrittenFile> finish();

 private:
  struct Shard {
    std::string name;
    std::vector<TensorInfo> tensors;
    uint64_t bytes = 0;
  };
  void open_next();
  void close();
  WrittenFile write_index() const;

  fs::path directory_;
  std::map<std::string, std::string> metadata_;
  std::vector<Shard> shards_;
  size_t opened_ = 0;  ///< number of shards opened so far
  uint64_t left_ = 0;  ///< bytes of the open shard that are still missing
  std::unique_ptr<SafetensorsWriter> open_;
  std::vector<WrittenFile> written_;
};

}  // namespace elastify
