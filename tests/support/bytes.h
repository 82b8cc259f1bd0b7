#pragma once

#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "base/file.h"

namespace elastify::test {

/// Builds the bytes of a file by hand, right or wrong. Numbers are little-endian.
class Bytes {
 public:
  template <typename T>
  Bytes& number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& u8(uint8_t value) { return number(value); }
  Bytes& i32(int32_t value) { return number(value); }
  Bytes& u32(uint32_t value) { return number(value); }
  Bytes& u64(uint64_t value) { return number(value); }
  Bytes& text(std::string_view value) {
    text_ += value;
    return *this;
  }
  Bytes& zeros(size_t n) {
    text_.append(n, '\0');
    return *this;
  }
  Bytes& pad(size_t alignment) { return zeros((alignment - text_.size() % alignment) % alignment); }

  operator const std::string&() const { return text_; }
  const std::string& str() const { return text_; }

 private:
  std::string text_;
};

inline void write_bytes(const fs::path& path, const std::string& bytes) {
  // File systems flush a file that is truncated and written again, which takes milliseconds.
  fs::remove(path);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) throw std::runtime_error("cannot write " + path.string());
}

inline std::string read_bytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

}  // namespace elastify::test
