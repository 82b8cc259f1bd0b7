#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace elastify {

class MappedFile;

/// SHA-256, fed in parts. Digests are 64 lower-case hex digits.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text))); }
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view text);
/// SHA-256 of a part of a mapped file. Only 16 MiB of the part stay in memory at a time.
std::string sha256_part(const MappedFile& file, std::span<const std::byte> bytes);
/// SHA-256 of a whole file.
/// \throws Error  if it cannot be read
std::string sha256_file(const std::filesystem::path& path);

}  // namespace elastify
