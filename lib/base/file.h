#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace elastify {

namespace fs = std::filesystem;

/// A file mapped read-only for as long as the object lives.
class MappedFile {
 public:
  /// \throws Error  if the file cannot be opened, is not a regular file or cannot be mapped
  static std::shared_ptr<const MappedFile> open(const fs::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  const fs::path& path() const { return path_; }
  /// Tells the kernel that these bytes of the map are not needed soon. They are read again when touched.
  void release(std::span<const std::byte> part) const;

 private:
  MappedFile(fs::path path, std::span<const std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}
  fs::path path_;
  std::span<const std::byte> bytes_;
};

/// The content of a small text file.
/// \throws Error  if it cannot be read or is larger than `max_bytes`
std::string read_text(const fs::path& path, uint64_t max_bytes = uint64_t{1} << 30);

/// A file that appears under its name complete or not at all. It is written beside the target, synced and
/// renamed.
class AtomicFile {
 public:
  explicit AtomicFile(fs::path path);
  ~AtomicFile();  ///< removes the temporary file unless committed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// \throws Error  naming the path and the cause (no space left, ...)
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Replaces bytes that were written before.
  void overwrite(uint64_t offset, std::span<const std::byte> bytes);
  uint64_t size() const { return size_; }
  const fs::path& path() const { return path_; }
  void commit();
  /// The path of the temporary file until commit(), for libraries that write to a path themselves.
  const fs::path& temporary() const { return temporary_; }

 private:
  fs::path path_;
  fs::path temporary_;
  int fd_ = -1;
  uint64_t size_ = 0;
  uint64_t started_ = 0;  ///< bytes that the disk was told to write
};

void write_text(const fs::path& path, std::string_view text);

/// A directory that appears complete or not at all. It is filled under a temporary name beside the target,
/// and commit() renames it. With `replace`, commit() removes an existing target.
class AtomicDirectory {
 public:
  /// \throws Error  if the target exists and `replace` is false, or the parent cannot be written
  AtomicDirectory(fs::path path, bool replace);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const fs::path& path() const { return temporary_; }
  void commit();

 private:
  fs::path target_;
  fs::path temporary_;
  bool committed_ = false;
};

/// \throws UsageError  if `path` exists and `force` is false
void require_absent(const fs::path& path, bool force);

}  // namespace elastify
