#include "base/output_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/error.h"
#include "base/path.h"

namespace elastify {
namespace {

fs::path lock_path(const fs::path& output) {
  const fs::path path = without_trailing_slash(fs::absolute(output));
  return path.parent_path() / fmt::format(".{}.lock", path.filename().string());
}

/// Whether the open file is still the one at `path`: its last owner may have removed it.
bool is_at(int fd, const fs::path& path) {
  struct stat open = {}, named = {};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

std::string owner_of(int fd) {
  char text[32] = {};
  const ssize_t n = ::pread(fd, text, sizeof(text) - 1, 0);
  return n > 0 ? fmt::format("process {}", std::string(text, static_cast<size_t>(n))) : "another process";
}

}  // namespace

OutputLock::OutputLock(const fs::path& output) : path_(lock_path(output)) {
  std::error_code ignored;
  fs::create_directories(path_.parent_path(), ignored);
  while (true) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0) return;
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      const int code = errno;
      const std::string owner = owner_of(fd_);
      ::close(std::exchange(fd_, -1));
      if (code != EWOULDBLOCK) return;
      throw UsageError(fmt::format("{}: {} is writing it", output.string(), owner),
                       "wait until it ends, or choose another output");
    }
    if (is_at(fd_, path_)) break;
    ::close(fd_);
  }
  const std::string id = std::to_string(::getpid());
  if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, id.data(), id.size(), 0) < 0) return;  // only for people
}

OutputLock::~OutputLock() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());
  ::close(fd_);
}

OutputLock::OutputLock(OutputLock&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

}  // namespace elastify
