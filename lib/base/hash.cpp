#include "base/hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/file.h"

namespace elastify {
namespace {

constexpr size_t kHashedAtOnce = size_t{1} << 24;

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  if (state_->context == nullptr || EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) != 1)
    throw Error("SHA-256 is not available in this OpenSSL");
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
  EVP_DigestUpdate(state_->context, bytes.data(), bytes.size());
}

std::string Sha256::finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(state_->context, digest.data(), &size);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string sha256_hex(std::string_view text) {
  Sha256 digest;
  digest.update(text);
  return digest.finish();
}

std::string sha256_part(const MappedFile& file, std::span<const std::byte> bytes) {
  Sha256 digest;
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kHashedAtOnce));
    digest.update(part);
    file.release(part);  // keeps resident memory bounded
    bytes = bytes.subspan(part.size());
  }
  return digest.finish();
}

std::string sha256_file(const fs::path& path) {
  const auto file = MappedFile::open(path);
  return sha256_part(*file, file->bytes());
}

}  // namespace elastify
