// elastify-spm: sentencepiece in a process of its own. It serves one client and one model on standard input
// and output, until the client closes its end. Protocol: data/spm_protocol.h; reason:
// data/sentencepiece_client.h.

#include <sentencepiece_processor.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "data/spm_protocol.h"

namespace {

using elastify::spm::MessageReader;
using elastify::spm::MessageWriter;
using elastify::spm::Outcome;
using elastify::spm::Verb;

/// Returns false at the end of input if nothing has been read yet.
bool read_exactly(char* bytes, size_t n) {
  size_t done = 0;
  while (done < n) {
    const ssize_t got = ::read(STDIN_FILENO, bytes + done, n - done);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0 && done == 0) return false;
    if (got <= 0) throw std::runtime_error("the client stopped in the middle of a request");
    done += static_cast<size_t>(got);
  }
  return true;
}

void write_all(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw std::runtime_error("the client stopped reading");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void check(const sentencepiece::util::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

class Server {
 public:
  std::string answer(std::string_view request) {
    try {
      MessageReader reader(request);
      switch (static_cast<Verb>(reader.get<uint8_t>())) {
        case Verb::kLoad:
          return load(reader);
        case Verb::kEncode:
          return encode(reader);
        case Verb::kDecode:
          return decode(reader);
      }
      throw std::runtime_error("unknown request");
    } catch (const std::exception& error) {
      MessageWriter reply(static_cast<uint8_t>(Outcome::kError));
      reply.put_text(error.what());
      return reply.finish();
    }
  }

 private:
  std::string load(MessageReader& request) {
    lines_are_independent_ = request.get<uint8_t>() != 0;
    std::string model(request.get_text());
    check(whole_.LoadFromSerializedProto(model));
    if (lines_are_independent_) {
      // A message that is given twice is merged, and the last value wins. The bytes are
      // normalizer_spec { add_dummy_prefix: false }.
      model.append("\x1a\x02\x18\x00", 4);
      check(continued_.LoadFromSerializedProto(model));
    }
    MessageWriter reply(static_cast<uint8_t>(Outcome::kDone));
    reply.put<uint64_t>(static_cast<uint64_t>(whole_.GetPieceSize()));
    return reply.finish();
  }

  /// A part of a text that is encoded on its own. Sentencepiece needs more time per byte for longer inputs,
  /// so texts are cut after line ends where that does not change the ids.
  struct Part {
    std::string_view text;
    bool first;
    std::vector<int> ids;
  };

  std::string encode(MessageReader& request) {
    const auto n_texts = request.get<uint64_t>();
    std::vector<Part> parts;
    for (uint64_t i = 0; i < n_texts; ++i) {
      std::string_view text = request.get_text();
      bool first = true;
      do {
        const size_t end = lines_are_independent_ ? text.find('\n', kMinPartBytes) : std::string_view::npos;
        parts.push_back({text.substr(0, end == std::string_view::npos ? end : end + 1), first, {}});
        text.remove_prefix(parts.back().text.size());
        first = false;
      } while (!text.empty());
    }
    encode_parts(parts);

    MessageWriter reply(static_cast<uint8_t>(Outcome::kDone));
    for (size_t begin = 0; begin < parts.size();) {
      std::vector<int> ids = std::move(parts[begin].ids);
      for (++begin; begin < parts.size() && !parts[begin].first; ++begin)
        ids.insert(ids.end(), parts[begin].ids.begin(), parts[begin].ids.end());
      reply.put_ids(ids);
    }
    return reply.finish();
  }

  void encode_parts(std::vector<Part>& parts) {
    std::atomic<size_t> next = 0;
    std::mutex mutex;
    std::string error;
    const auto work = [&] {
      try {
        for (size_t i = next++; i < parts.size(); i = next++)
          check((parts[i].first ? whole_ : continued_).Encode(parts[i].text, &parts[i].ids));
      } catch (const std::exception& exception) {
        const std::lock_guard lock(mutex);
        error = exception.what();
        next = parts.size();
      }
    };
    const size_t n_threads =
        std::min<size_t>(std::max(1u, std::thread::hardware_concurrency()), parts.size() / 8);
    std::vector<std::thread> threads;
    for (size_t i = 1; i < n_threads; ++i) threads.emplace_back(work);
    work();
    for (auto& thread : threads) thread.join();
    if (!error.empty()) throw std::runtime_error(error);
  }

  std::string decode(MessageReader& request) {
    std::string text;
    check(whole_.Decode(request.get_ids(), &text));
    MessageWriter reply(static_cast<uint8_t>(Outcome::kDone));
    reply.put_text(text);
    return reply.finish();
  }

  static constexpr size_t kMinPartBytes = 1024;

  sentencepiece::SentencePieceProcessor whole_;
  sentencepiece::SentencePieceProcessor continued_;  ///< without a dummy prefix; for later parts of a text
  bool lines_are_independent_ = false;
};

}  // namespace

int main() {
  if (::isatty(STDIN_FILENO)) {
    std::fputs("elastify-spm: started by elastify to run sentencepiece; not for use by hand\n", stderr);
    return 2;
  }
  try {
    Server server;
    std::string request;
    uint64_t length = 0;
    while (read_exactly(reinterpret_cast<char*>(&length), sizeof length)) {
      if (length > elastify::spm::kMaxMessageBytes) throw std::runtime_error("a request is too long");
      request.resize(length);
      if (!read_exactly(request.data(), length))
        throw std::runtime_error("the client stopped in the middle of a request");
      write_all(server.answer(request));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "elastify-spm: %s\n", error.what());
    return 1;
  }
  return 0;
}
