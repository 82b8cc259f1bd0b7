#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace elastify {

static_assert(std::endian::native == std::endian::little, "files are little-endian and read in place");

/// Text of a file, made fit for an error message: at most 80 bytes, control characters as \xNN.
inline std::string printable(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string result;
  for (const char c : text.substr(0, kMost)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f)
      result += fmt::format("\\x{:02x}", byte);
    else
      result += c;
  }
  if (text.size() > kMost) result += "...";
  return result;
}

/// Reads a file's bytes from front to back, never past their end.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  /// \param what  the name of the field for the Error that is thrown if fewer than `n` bytes are left
  std::span<const std::byte> take(uint64_t n, std::string_view what) {
    if (n > left())
      fail("{}: needs {} bytes from byte {} on, but the file has {} bytes", what, n, position_,
           bytes_.size());
    const auto part = bytes_.subspan(position_, n);
    position_ += n;
    return part;
  }

  template <typename T>
  requires std::is_arithmetic_v<T> T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
};

}  // namespace elastify
