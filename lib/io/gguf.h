#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "io/tensor.h"

// GGUF, versions 2 and 3, little-endian:
//
//   "GGUF" | u32 version | u64 n_tensors | u64 n_keys
//   n_keys    x { string key | u32 value_type | value }
//   n_tensors x { string name | u32 n_dims | u64 ne[n_dims] (innermost first) | u32 ggml_type | u64 offset }
//   padding to general.alignment (32)
//   tensor data; every offset is the running sum of the padded sizes before it, in record order
//
//   string = u64 length | bytes; array value = u32 element_type | u64 count | elements
//
// Source: ggml/docs/gguf.md, ggml/src/gguf.cpp

namespace elastify {

struct GgufArray {
  std::variant<std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>, std::vector<int16_t>,
               std::vector<uint32_t>, std::vector<int32_t>, std::vector<float>, std::vector<bool>,
               std::vector<std::string>, std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>>
      values;
  size_t size() const;
};

/// A metadata value with its exact stored type: runtimes reject the right number in the wrong type.
using GgufValue = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool,
                               std::string, GgufArray, uint64_t, int64_t, double>;

/// Metadata in file order.
class GgufMetadata {
 public:
  const std::vector<std::pair<std::string, GgufValue>>& entries() const { return entries_; }
  const GgufValue* find(std::string_view key) const;
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  /// Adds the key, or replaces its value in place.
  void set(std::string key, GgufValue value);
  void erase(std::string_view key);

  // Typed look-ups. Integers of any width are accepted where the value fits. nullopt if the key is absent.
  // \throws Error naming key, expected and found type
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string> string(std::string_view key) const;
  const std::vector<std::string>* strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;  ///< array of any integer type
  const std::vector<float>* floats(std::string_view key) const;

  // The same, for keys that must be present. \throws Error
  int64_t require_integer(std::string_view key) const;
  double require_number(std::string_view key) const;
  std::string require_string(std::string_view key) const;

 private:
  std::vector<std::pair<std::string, GgufValue>> entries_;
  std::map<std::string, size_t, std::less<>> index_;
};

/// An open GGUF file: its header is parsed and checked against the file's size, its data is mapped. A model
/// split over several files (`name-00001-of-00003.gguf`) is opened by its first part. It then looks like one
/// file with the keys of that part and the tensors of all parts.
class GgufFile {
 public:
  /// \throws Error naming the file, the place in it, what was expected and what was found
  static GgufFile open(const fs::path& path);
  /// Opens a complete file inside another. Its bytes must start at a multiple of 32 of the map. Errors call
  /// it "model.gguf: lora-050.gguf".
  /// \throws Error  as open()
  static GgufFile open_embedded(std::shared_ptr<const MappedFile> file, uint64_t offset, uint64_t size,
                                const std::string& name);
  static bool has_magic(const fs::path& path);

  uint32_t version() const { return version_; }
  const GgufMetadata& metadata() const { return metadata_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  ///< shapes outermost first
  bool contains(std::string_view name) const;
  /// A view into the map.
  /// \throws Error  if there is no such tensor
  HostTensor tensor(std::string_view name) const;
  const fs::path& path() const { return file_->path(); }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }
  /// The end of the last tensor, padded to the alignment. Bytes behind it are not part of the model.
  uint64_t end() const { return end_; }

  std::vector<fs::path> paths() const;  ///< of all parts
  void release_pages() const;           ///< see MappedFile

 private:
  static GgufFile open_one(const fs::path& path);
  void parse();
  void add_parts();

  std::shared_ptr<const MappedFile> file_;
  std::span<const std::byte> bytes_;
  std::vector<GgufFile> parts_;  ///< the parts after the first
  uint64_t end_ = 0;
  uint32_t version_ = 3;
  GgufMetadata metadata_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::span<const std::byte>> data_;
  std::vector<std::shared_ptr<const MappedFile>> owners_;  ///< the file that holds each tensor's data
  std::map<std::string, size_t, std::less<>> index_;
};

/// Size in bytes of the file that GgufWriter writes for these keys and tensors.
uint64_t gguf_size(const GgufMetadata& metadata, const std::vector<TensorInfo>& tensors);

/// Writes a GGUF v3 file atomically and in one pass. The data of the tensors is given in order.
class GgufWriter {
 public:
  /// kNowhere writes no file: only its size and SHA-256 are computed.
  enum class Target { kFile, kNowhere };

  /// \throws Error  for what stock runtimes refuse: names of 64 bytes or more, names given twice, no or more
  ///                than four dimensions, empty tensors, rows that are not whole blocks, alignments below 32
  GgufWriter(const fs::path& path, const GgufMetadata& metadata, std::vector<TensorInfo> tensors,
             Target target = Target::kFile);

  /// Bytes of the current tensor, whole or in parts. Padding between tensors is added automatically.
  void write(std::span<const std::byte> bytes);
  /// The name of the tensor whose bytes come next; empty after the last one.
  std::string_view current() const;
  /// Replaces the file's keys. The new keys must take as many bytes. The file is read again for its SHA-256.
  void replace(const GgufMetadata& metadata);
  /// Appends bytes after the last tensor. Readers of GGUF ignore them.
  void append(std::span<const std::byte> bytes);
  /// \param expected  the SHA-256 that the file must have; empty: any
  /// \throws Error  if bytes are missing or the SHA-256 differs; no file is left then
  /// \returns the file's SHA-256
  std::string finish(const std::string& expected = {});
  uint64_t size() const { return size_; }

 private:
  void put(std::span<const std::byte> bytes);
  void pad();

  fs::path path_;
  std::optional<AtomicFile> file_;
  Sha256 digest_;
  uint64_t size_ = 0, header_size_ = 0;
  bool is_replaced_ = false;  ///< whether bytes that went into the digest were replaced later
  std::vector<TensorInfo> tensors_;
  uint64_t alignment_ = 32;
  size_t current_ = 0;
  uint64_t left_ = 0;  ///< bytes of the current tensor that are still missing
};

}  // namespace elastify
