#pragma once

#include <array>
#include <random>
#include <string>

#include "base/error.h"
#include "support/bytes.h"
#include "support/temporary_directory.h"

namespace elastify::test {

/// Returns `valid` with a few random faults: changed bytes, extreme numbers, parts cut out or doubled, a lost
/// end.
inline std::string mutated(const std::string& valid, std::mt19937_64& random) {
  const auto below = [&](uint64_t n) { return static_cast<size_t>(random() % n); };
  std::string bytes = valid;
  for (size_t n = 1 + below(3); n > 0 && !bytes.empty(); --n) {
    const size_t at = below(bytes.size());
    const size_t length = 1 + below(16);
    switch (below(8)) {
      case 0:
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
      case 3:
        bytes[at] = static_cast<char>(random());
        break;
      case 4: {
        constexpr std::array<uint64_t, 8> kExtremes = {0,
                                                       1,
                                                       ~uint64_t{0},
                                                       uint64_t{1} << 63,
                                                       (uint64_t{1} << 63) - 1,
                                                       uint64_t{1} << 32,
                                                       0x7fffffff,
                                                       0xffffffff};
        const uint64_t value = kExtremes[below(kExtremes.size())];
        const size_t width = below(2) == 0 ? 4 : 8;
        for (size_t i = 0; i < width && at + i < bytes.size(); ++i)
          bytes[at + i] = static_cast<char>(value >> (8 * i));
        break;
      }
      case 5:
        bytes.erase(at, length);
        break;
      case 6:
        bytes.insert(at, bytes.substr(at, length));
        break;
      default:
        bytes.resize(at);
        break;
    }
  }
  return bytes;
}

struct MutationCount {
  int accepted = 0, refused = 0;
};

/// Lets `read(path)` read `n` mutations of a file. Each has to be read to the end or refused with an Error;
/// any other exception is passed on and fails the test. The seed is fixed.
template <typename Read>
MutationCount read_mutations(const std::string& valid, int n, Read&& read) {
  const TemporaryDirectory directory;
  const fs::path path = directory / "mutated";
  std::mt19937_64 random(20240917);
  MutationCount count;
  for (int i = 0; i < n; ++i) {
    write_bytes(path, mutated(valid, random));
    try {
      read(path);
      ++count.accepted;
    } catch (const Error&) {
      ++count.refused;
    }
  }
  return count;
}

/// A number that depends on every byte, so that the compiler cannot leave out any of the reads.
inline uint64_t sum_of(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte byte : bytes) sum = sum * 31 + std::to_integer<uint64_t>(byte);
  return sum;
}

}  // namespace elastify::test
