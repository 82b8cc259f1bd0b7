#include "base/hash.h"

#include <doctest/doctest.h>

#include "base/file.h"
#include "support/bytes.h"
#include "support/errors.h"
#include "support/temporary_directory.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("hash: SHA-256 gives the digests of FIPS 180-4") {
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST_CASE("hash: feeding in parts gives the digest of the whole") {
  Sha256 digest;
  for (int i = 0; i < 1000; ++i) digest.update(std::string(1000, 'a'));
  digest.update("");
  CHECK(digest.finish() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("hash: a file has the digest of its bytes, also if it is empty") {
  const TemporaryDirectory directory;
  write_bytes(directory / "text", "abc");
  write_bytes(directory / "empty", "");
  CHECK(sha256_file(directory / "text") == sha256_hex("abc"));
  CHECK(sha256_file(directory / "empty") == sha256_hex(""));
  const fs::path absent = directory / "absent";
  CHECK(message_of([&] { sha256_file(absent); }) ==
        absent.string() + ": cannot open: No such file or directory");
}
