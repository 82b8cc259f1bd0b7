#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "io/tensor.h"

namespace elastify {

/// One .safetensors file: u64 little-endian header length N, N bytes of JSON
/// {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {..}}, data.
/// The whole header is checked before any of it is used: length, types, shapes against byte counts, offsets
/// inside the file, no gaps, no overlaps. Source: https://github.com/huggingface/safetensors, "Format"
class SafetensorsFile {
 public:
  /// Maps the file and reads its header.
  /// \throws Error  naming the file and the entry at fault
  static SafetensorsFile open(const fs::path& path);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  ///< F32, F16 and BF16, in file order
  /// Names and types of the tensors that tensors() leaves out because of their type (index buffers, say).
  const std::map<std::string, std::string, std::less<>>& skipped() const { return skipped_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(std::string_view name) const;
  /// A view into the map, or a copy if the data is unaligned in the file.
  /// \throws Error  if there is no such tensor
  HostTensor tensor(std::string_view name) const;

  void release_pages() const { file_->release(file_->bytes()); }  ///< see MappedFile

 private:
  void parse();

  std::shared_ptr<const MappedFile> file_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::span<const std::byte>> data_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string, std::less<>> skipped_;
  std::map<std::string, std::string> metadata_;
};

/// Writes a .safetensors file tensor by tensor, in the order given at construction, atomically.
/// Deterministic: the same tensors give the same bytes. The data section starts at a multiple of 64.
class SafetensorsWriter {
 public:
  /// \throws Error  for names given twice and types other than f32, f16 and bf16
  SafetensorsWriter(const fs::path& path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata);

  /// Bytes of the next tensor, or of its next part.
  /// \throws Error  on more bytes than declared
  void write(std::span<const std::byte> bytes);
  /// \throws Error  if bytes are missing.
  /// \returns the file's SHA-256
  std::string finish();

 private:
  void put(std::span<const std::byte> bytes);
  void next();

  AtomicFile file_;
  Sha256 digest_;
  std::vector<TensorInfo> tensors_;
  size_t current_ = 0;
  uint64_t left_ = 0;  ///< bytes still missing of the current tensor
};

}  // namespace elastify
