#pragma once

#include "base/file.h"

namespace elastify {

/// Keeps other elastify processes away from an output, from its construction to its end. The system drops the
/// lock when the process ends, however it ends. The lock is on a file beside the output, ".NAME.lock", which
/// is removed at the end. Where such a file cannot be made or locked, there is no lock.
class OutputLock {
 public:
  /// \throws UsageError  naming the process that holds the lock
  explicit OutputLock(const fs::path& output);
  ~OutputLock();
  OutputLock(OutputLock&& other) noexcept;
  OutputLock& operator=(OutputLock&&) = delete;

 private:
  fs::path path_;
  int fd_ = -1;
};

}  // namespace elastify
