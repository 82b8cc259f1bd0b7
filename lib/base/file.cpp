#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/path.h"

namespace elastify {
namespace {

constexpr uint64_t kWriteBehind = uint64_t{32} << 20;

[[noreturn]] void fail_errno(const fs::path& path, std::string_view action) {
  const int code = errno;
  std::string hint;
  if (code == ENOSPC) hint = "free some space or choose another output directory";
  if (code == EACCES || code == EROFS || code == EPERM)
    hint = "choose an output directory that you may write to";
  const std::string message = fmt::format("{}: cannot {}: {}", path.string(), action, std::strerror(code));
  if (code == ENOENT) throw Error(message, hint);
  throw SystemError(message, hint);
}

fs::path beside(const fs::path& path) {
  return path.parent_path() / fmt::format(".{}.tmp-{}", path.filename().string(), getpid());
}

/// Removes temporary files and directories that killed processes left beside `path`.
void remove_abandoned(const fs::path& path) {
  const std::string prefix = fmt::format(".{}.tmp-", path.filename().string());
  std::error_code error;
  fs::directory_iterator entry(path.has_parent_path() ? path.parent_path() : ".", error);
  std::vector<fs::path> abandoned;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.compare(0, prefix.size(), prefix) != 0) continue;
    const long process = std::strtol(name.c_str() + prefix.size(), nullptr, 10);
    if (process > 0 && ::kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH)
      abandoned.push_back(entry->path());
  }
  for (const fs::path& left : abandoned) fs::remove_all(left, error);
}

void sync_directory(const fs::path& directory) {
  const int fd = ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const fs::path& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer before it could be refused.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail_errno(path, "open");
  struct stat status = {};
  if (::fstat(fd, &status) != 0) {
    ::close(fd);
    fail_errno(path, "read its status");
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd);
    fail("{}: not a regular file", path.string());
  }
  const auto size = static_cast<size_t>(status.st_size);
  void* address = nullptr;
  if (size > 0) {
    address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (address == MAP_FAILED) {
      ::close(fd);
      fail_errno(path, "map");
    }
  }
  ::close(fd);
  return std::shared_ptr<const MappedFile>(
      new MappedFile(path, {static_cast<const std::byte*>(address), size}));
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::release(std::span<const std::byte> part) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string read_text(const fs::path& path, uint64_t max_bytes) {
  const auto file = MappedFile::open(path);
  if (file->bytes().size() > max_bytes)
    fail("{}: {} bytes, more than the {} that a file of this kind may have", path.string(),
         file->bytes().size(), max_bytes);
  return {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()};
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(beside(path_)) {
  if (path_.has_parent_path()) {
    std::error_code error;
    fs::create_directories(path_.parent_path(), error);
    if (error) {
      errno = error.value();
      fail_errno(path_.parent_path(), "make the directory");
    }
  }
  remove_abandoned(path_);
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno(path_, "write");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      fail_errno(path_, "write");
    }
    size_ += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  // The disk starts writing now rather than at commit(). Failures show in commit(), so none is reported here.
  if (size_ - started_ < kWriteBehind) return;
  ::sync_file_range(fd_, static_cast<off_t>(started_), static_cast<off_t>(size_ - started_),
                    SYNC_FILE_RANGE_WRITE);
  started_ = size_;
}

void AtomicFile::overwrite(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      fail_errno(path_, "write");
    }
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) fail_errno(path_, "write");
  if (::close(std::exchange(fd_, -1)) != 0) {
    ::unlink(temporary_.c_str());
    fail_errno(path_, "write");
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    errno = code;
    fail_errno(path_, "write");
  }
  sync_directory(path_.parent_path());
}

void write_text(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

AtomicDirectory::AtomicDirectory(fs::path path, bool replace)
    : target_(without_trailing_slash(std::move(path))), temporary_(beside(target_)) {
  require_absent(target_, replace);
  remove_abandoned(target_);
  std::error_code error;
  fs::remove_all(temporary_, error);
  fs::create_directories(temporary_, error);
  if (error) {
    errno = error.value();
    fail_errno(target_, "make the directory");
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
  std::error_code error;
  fs::path old;
  if (fs::exists(target_)) {
    old = beside(target_);
    old += "-old";
    fs::rename(target_, old, error);
  }
  if (!error) {
    fs::rename(temporary_, target_, error);
    std::error_code ignored;
    if (error && !old.empty()) fs::rename(old, target_, ignored);
  }
  if (error) {
    errno = error.value();
    fail_errno(target_, "write");
  }
  committed_ = true;
  sync_directory(target_.parent_path());
  if (!old.empty()) fs::remove_all(old, error);
}

void require_absent(const fs::path& path, bool force) {
  if (!force && fs::exists(path))
    throw UsageError(fmt::format("{}: exists already", path.string()),
                     "--force replaces it, or choose another -o");
}

}  // namespace elastify
