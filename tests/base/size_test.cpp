#include "base/size.h"

#include <doctest/doctest.h>

#include "base/error.h"

using namespace elastify;

TEST_CASE("size: binary and decimal units, and nothing else") {
  CHECK(parse_bytes("4GiB") == int64_t{4} << 30);
  CHECK(parse_bytes("1.5MiB") == 1572864);
  CHECK(parse_bytes("2GB") == 2'000'000'000);
  CHECK(parse_bytes("1000") == 1000);
  CHECK(parse_bytes("12B") == 12);
  for (const char* wrong : {"", "GiB", "-1GiB", "4 GiB", "4gib", "1e30TiB", "nan", "4GiBs"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(parse_bytes(wrong), UsageError);
  }
  CHECK(format_bytes(int64_t{3} << 29) == "1.50 GiB");
}
