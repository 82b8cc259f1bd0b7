#include "data/sentencepiece_client.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/progress.h"

extern char** environ;

namespace elastify {
namespace {

constexpr const char* kExecutable = "elastify-spm";
/// Texts per request: large enough to keep all cores busy, small enough to notice an interrupt soon.
constexpr size_t kRequestBytes = size_t{4} << 20;

/// A descriptor that is closed with its scope. It is never 0, 1 or 2, because the child replaces those.
class Descriptor {
 public:
  Descriptor(int fd, std::string_view what) : fd_(fd) {
    if (fd_ >= 0 && fd_ <= STDERR_FILENO) {
      const int above = ::fcntl(fd_, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
      ::close(std::exchange(fd_, above));
    }
    if (fd_ < 0) fail("sentencepiece helper: cannot make a {}: {}", what, std::strerror(errno));
  }
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_;
};

bool is_executable(const fs::path& path) {
  return ::access(path.c_str(), X_OK) == 0 && fs::is_regular_file(path);
}

}  // namespace

fs::path find_sentencepiece_helper() {
  if (const char* named = std::getenv("ELASTIFY_SPM"); named != nullptr && *named != '\0') {
    if (is_executable(named)) return named;
    throw Error(fmt::format("{}: not an executable file", named),
                "ELASTIFY_SPM names the sentencepiece helper");
  }
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::string searched;
  for (const fs::path& directory : {here, here.parent_path(), here.parent_path() / "libexec"}) {
    const fs::path path = directory / kExecutable;
    if (!error && is_executable(path)) return path;
    searched += fmt::format("{}{}", searched.empty() ? "" : ", ", path.string());
  }
  throw Error(fmt::format("sentencepiece helper: not found (searched: {})", searched),
              "it is built and installed with elastify; ELASTIFY_SPM=<file> names it elsewhere");
}

SentencePieceClient::SentencePieceClient(std::string_view model, bool lines_are_independent)
    : executable_(find_sentencepiece_helper()) {
  int pair[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    fail("sentencepiece helper: cannot make a socket: {}", std::strerror(errno));
  Descriptor ours(pair[0], "socket");
  Descriptor theirs(pair[1], "socket");
  Descriptor log(::memfd_create("elastify-spm-stderr", MFD_CLOEXEC), "log");

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, log.get(), STDERR_FILENO);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  std::string name = executable_.string();
  char* arguments[] = {name.data(), nullptr};
  const int code = ::posix_spawn(&process_, name.c_str(), &actions, &attributes, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (code != 0) fail("{}: cannot start: {}", name, std::strerror(code));
  theirs.close();  // otherwise the helper's end would stay open after the helper has ended
  socket_ = ours.release();
  log_ = log.release();

  try {
    constexpr std::string_view kTask = "loading the model";
    spm::MessageWriter request(static_cast<uint8_t>(spm::Verb::kLoad));
    request.put<uint8_t>(lines_are_independent ? 1 : 0);
    request.put_text(model);
    try {
      n_pieces_ =
          static_cast<int64_t>(spm::MessageReader(exchange(std::move(request), kTask)).get<uint64_t>());
    } catch (const spm::BrokenMessage&) {
      report_broken_reply(kTask);
    }
  } catch (...) {
    stop();
    throw;
  }
}

SentencePieceClient::~SentencePieceClient() {
  stop();
}

void SentencePieceClient::stop() noexcept {
  if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  if (process_ > 0) {
    // An idle helper ends by itself when the socket closes. A busy one would finish its request first.
    if (!idle_) ::kill(process_, SIGKILL);
    while (::waitpid(process_, nullptr, 0) < 0 && errno == EINTR) continue;
    process_ = -1;
  }
  if (log_ >= 0) ::close(std::exchange(log_, -1));
}

void SentencePieceClient::report_death(std::string_view task) {
  int status = 0;
  pid_t ended = -1;
  ::close(std::exchange(socket_, -1));
  do {
    ended = ::waitpid(process_, &status, 0);
  } while (ended < 0 && errno == EINTR);
  process_ = -1;
  std::string how = "ended";
  if (ended > 0 && WIFEXITED(status)) how = fmt::format("ended with exit status {}", WEXITSTATUS(status));
  if (ended > 0 && WIFSIGNALED(status))
    how = fmt::format("was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));

  // The helper's last line says why it ended.
  std::string text(4096, '\0');
  const off_t size = ::lseek(log_, 0, SEEK_END);
  const ssize_t n = ::pread(log_, text.data(), text.size(), std::max<off_t>(0, size - 4096));
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  text.erase(text.find_last_not_of(" \r\n") + 1);
  text.erase(0, text.rfind('\n') + 1);
  throw Error(
      fmt::format("{}: {} while {}{}{}", executable_.string(), how, task, text.empty() ? "" : ": ", text));
}

std::string_view SentencePieceClient::exchange(spm::MessageWriter request, std::string_view task) {
  if (socket_ < 0 || !idle_) fail("{}: stopped after an earlier error", executable_.string());
  idle_ = false;
  std::string_view unsent = request.finish();
  while (!unsent.empty()) {
    // MSG_NOSIGNAL: a dead helper must give an error here, not a SIGPIPE that ends the whole program.
    const ssize_t n = ::send(socket_, unsent.data(), unsent.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) {
      check_interrupt();
      continue;
    }
    if (n < 0) report_death(task);
    unsent.remove_prefix(static_cast<size_t>(n));
  }
  const auto receive = [&](char* bytes, size_t size) {
    while (size > 0) {
      const ssize_t n = ::recv(socket_, bytes, size, 0);
      if (n < 0 && errno == EINTR) {
        check_interrupt();
        continue;
      }
      if (n <= 0) report_death(task);
      bytes += n;
      size -= static_cast<size_t>(n);
    }
  };
  uint64_t length = 0;
  receive(reinterpret_cast<char*>(&length), sizeof length);
  if (length == 0 || length > spm::kMaxMessageBytes) throw spm::BrokenMessage();
  reply_.resize(length);
  receive(reply_.data(), length);
  spm::MessageReader reply(reply_);
  const auto outcome = static_cast<spm::Outcome>(reply.get<uint8_t>());
  if (outcome == spm::Outcome::kError) {
    const std::string_view message = reply.get_text();
    idle_ = true;
    fail("sentencepiece: {}: {}", task, message);
  }
  if (outcome != spm::Outcome::kDone) throw spm::BrokenMessage();
  idle_ = true;
  return reply.rest();
}

void SentencePieceClient::report_broken_reply(std::string_view task) {
  idle_ = false;
  throw Error(fmt::format("{}: sent a broken reply while {}", executable_.string(), task),
              "the helper and elastify must come from the same build");
}

std::vector<std::vector<int32_t>> SentencePieceClient::encode(const std::vector<std::string_view>& texts) {
  const std::lock_guard lock(mutex_);
  std::vector<std::vector<int32_t>> all;
  all.reserve(texts.size());
  while (all.size() < texts.size()) {
    check_interrupt();
    const size_t begin = all.size();
    size_t end = begin;
    size_t n_bytes = 0;
    while (end < texts.size() && (end == begin || n_bytes + texts[end].size() <= kRequestBytes))
      n_bytes += texts[end++].size();
    spm::MessageWriter request(static_cast<uint8_t>(spm::Verb::kEncode));
    request.put<uint64_t>(end - begin);
    for (size_t i = begin; i < end; ++i) request.put_text(texts[i]);
    try {
      spm::MessageReader reply(exchange(std::move(request), "encoding"));
      for (size_t i = begin; i < end; ++i) all.push_back(reply.get_ids());
    } catch (const spm::BrokenMessage&) {
      report_broken_reply("encoding");
    }
  }
  return all;
}

std::string SentencePieceClient::decode(const std::vector<int32_t>& ids) {
  const std::lock_guard lock(mutex_);
  spm::MessageWriter request(static_cast<uint8_t>(spm::Verb::kDecode));
  request.put_ids(ids);
  try {
    return std::string(spm::MessageReader(exchange(std::move(request), "decoding")).get_text());
  } catch (const spm::BrokenMessage&) {
    report_broken_reply("decoding");
  }
}

}  // namespace elastify
