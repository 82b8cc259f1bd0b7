#include "base/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "base/progress.h"

extern char** environ;

namespace elastify {
namespace {

constexpr off_t kKeptBytes = off_t{4} << 20;
constexpr std::chrono::milliseconds kPause{5};

/// A file in memory that captures a child's output.
class Capture {
 public:
  explicit Capture(const char* name) : fd_(::memfd_create(name, MFD_CLOEXEC)) {
    if (fd_ < 0) fail("cannot make a file in memory: {}", std::strerror(errno));
  }
  ~Capture() { ::close(fd_); }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  int fd() const { return fd_; }

  std::string text() const {
    const off_t size = ::lseek(fd_, 0, SEEK_END), from = std::max<off_t>(0, size - kKeptBytes);
    std::string text(static_cast<size_t>(std::max<off_t>(0, size - from)), '\0');
    const ssize_t n = ::pread(fd_, text.data(), text.size(), from);
    text.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return text;
  }

 private:
  int fd_;
};

pid_t start(const std::vector<std::string>& arguments, int out, int err) {
  std::vector<std::string> copies = arguments;
  std::vector<char*> pointers;
  for (std::string& each : copies) pointers.push_back(each.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  pid_t process = -1;
  const int code = ::posix_spawnp(&process, pointers[0], &actions, &attributes, pointers.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (code != 0) fail("{}: cannot start: {}", arguments.front(), std::strerror(code));
  return process;
}

}  // namespace

std::string ChildOutcome::how() const {
  if (timed_out) return fmt::format("took longer than {:.0f} s", std::floor(seconds));
  if (signal != 0) return fmt::format("was ended by signal {} ({})", signal, ::strsignal(signal));
  return fmt::format("ended with exit status {}", status);
}

ChildOutcome run_child(const std::vector<std::string>& arguments, double limit_seconds) {
  const Capture out("stdout"), err("stderr");
  const auto started = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  };
  const pid_t process = start(arguments, out.fd(), err.fd());
  ChildOutcome outcome;
  int state = 0;
  rusage used{};
  const auto end = [&] {
    ::kill(-process, SIGKILL);
    while (::wait4(process, &state, 0, &used) < 0 && errno == EINTR) continue;
  };
  while (true) {
    const pid_t ended = ::wait4(process, &state, WNOHANG, &used);
    if (ended == process) break;
    if (ended < 0 && errno != EINTR) fail("{}: lost: {}", arguments.front(), std::strerror(errno));
    try {
      check_interrupt();
    } catch (...) {
      end();
      throw;
    }
    if (elapsed() > limit_seconds) {
      end();
      outcome.timed_out = true;
      break;
    }
    std::this_thread::sleep_for(kPause);
  }
  outcome.seconds = elapsed();
  if (WIFEXITED(state)) outcome.status = WEXITSTATUS(state);
  if (WIFSIGNALED(state)) outcome.signal = WTERMSIG(state);
  outcome.peak_rss_bytes = int64_t{used.ru_maxrss} * 1024;
  outcome.out = out.text();
  outcome.err = err.text();
  return outcome;
}

}  // namespace elastify
