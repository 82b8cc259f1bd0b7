#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

// The protocol between elastify and its helper elastify-spm, over a stream socket. Both run on one machine,
// so integers are in native byte order. The helper reads a whole request before it writes, so the two cannot
// block each other with full buffers.
//
//   request = u64 length | u8 verb    | body        (length: of everything after it)
//   reply   = u64 length | u8 outcome | body        (an error's body is its message)
//
//   text = u64 length | bytes        ids = u64 count | i32[count]
//
//   verb      request body                                reply body
//   load      u8 lines are independent | text: the model  u64 number of pieces
//   encode    u64 n | n texts                             n ids
//   decode    ids                                         text

namespace elastify::spm {

enum class Verb : uint8_t { kLoad = 1, kEncode, kDecode };
enum class Outcome : uint8_t { kDone = 0, kError };

/// A longer message is taken for a broken stream.
inline constexpr uint64_t kMaxMessageBytes = uint64_t{1} << 32;

class MessageWriter {
 public:
  explicit MessageWriter(uint8_t head) {
    put<uint64_t>(0);
    put(head);
  }
  template <typename T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_text(std::string_view text) {
    put<uint64_t>(text.size());
    bytes_.append(text);
  }
  void put_ids(const std::vector<int>& ids) {
    put<uint64_t>(ids.size());
    bytes_.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int));
  }
  /// Returns the message with its length in front.
  const std::string& finish() {
    const uint64_t length = bytes_.size() - sizeof(uint64_t);
    std::memcpy(bytes_.data(), &length, sizeof length);
    return bytes_;
  }

 private:
  std::string bytes_;
};

class BrokenMessage : public std::runtime_error {
 public:
  BrokenMessage() : std::runtime_error("message too short") {}
};

/// Reads the parts of a message in order.
/// \throws BrokenMessage  past the end of the message
class MessageReader {
 public:
  explicit MessageReader(std::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view get_text() { return take(get<uint64_t>()); }
  std::vector<int> get_ids() {
    const auto n = get<uint64_t>();
    if (n > bytes_.size() / sizeof(int)) throw BrokenMessage();
    std::vector<int> ids(n);
    const std::string_view values = take(n * sizeof(int));
    if (n > 0) std::memcpy(ids.data(), values.data(), values.size());
    return ids;
  }
  std::string_view rest() { return take(bytes_.size()); }

 private:
  std::string_view take(uint64_t n) {
    if (n > bytes_.size()) throw BrokenMessage();
    const std::string_view part = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return part;
  }

  std::string_view bytes_;
};

}  // namespace elastify::spm
