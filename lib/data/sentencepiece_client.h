#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "data/spm_protocol.h"

namespace elastify {

/// libsentencepiece, run by a helper process.
///
/// Why a process: libsentencepiece.so carries its own copy of protobuf and exports its symbols. LibTorch
/// needs another version of protobuf under the same names. A program linked to both crashes before main().
/// Loading one of them in a linker namespace of its own does not work under AddressSanitizer. So the library
/// runs in `elastify-spm`, a small executable that is linked to nothing else and works with any LibTorch.
///
/// How: the helper is started with one end of a socket pair as its standard input and output. It reads no
/// files, because the model's bytes go over the socket. Requests are batches, so the cost of a round trip
/// does not matter. The helper has a process group of its own: Ctrl-C stops elastify, which closes the
/// socket, and then the helper ends. Its stderr is kept; if the helper dies, its last line becomes part of
/// the error.
///
/// Where: the file named by the environment variable ELASTIFY_SPM; otherwise `elastify-spm` in the directory
/// of the running executable, in the directory above it (a build tree's tests), or in ../libexec of it.
///
/// May be used from several threads; requests are served one at a time, each on all cores.
class SentencePieceClient {
 public:
  /// \param model                  a serialised ModelProto
  /// \param lines_are_independent  long texts may be encoded line by line (SentencePieceModel)
  /// \throws Error  if the helper is not found or cannot be started, or sentencepiece rejects the model
  SentencePieceClient(std::string_view model, bool lines_are_independent);
  ~SentencePieceClient();
  SentencePieceClient(const SentencePieceClient&) = delete;
  SentencePieceClient& operator=(const SentencePieceClient&) = delete;

  int64_t n_pieces() const { return n_pieces_; }
  std::vector<std::vector<int32_t>> encode(const std::vector<std::string_view>& texts);
  std::string decode(const std::vector<int32_t>& ids);

  /// The helper's process id, for tests in which the helper dies.
  pid_t process() const { return process_; }

 private:
  /// Sends a request and returns the body of the reply, which is valid until the next call.
  /// \throws Error               the helper's message, or how the helper ended
  /// \throws spm::BrokenMessage  if the bytes received are not a reply
  std::string_view exchange(spm::MessageWriter request, std::string_view task);
  [[noreturn]] void report_broken_reply(std::string_view task);
  void stop() noexcept;
  [[noreturn]] void report_death(std::string_view task);

  fs::path executable_;
  std::mutex mutex_;
  int socket_ = -1;
  int log_ = -1;  ///< the helper's stderr
  pid_t process_ = -1;
  bool idle_ = true;  ///< whether every request so far got its reply
  std::string reply_;
  int64_t n_pieces_ = 0;
};

/// Finds the helper's executable.
/// \throws Error  naming every place that was searched
fs::path find_sentencepiece_helper();

}  // namespace elastify
