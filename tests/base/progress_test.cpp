#include "base/progress.h"

#include <doctest/doctest.h>

using namespace elastify;

TEST_CASE("progress: rates of slow work keep two digits") {
  CHECK(rate_text(1234.4) == "1234");
  CHECK(rate_text(9.97) == "10");
  CHECK(rate_text(3.456) == "3.5");
  CHECK(rate_text(0.1949) == "0.19");
  CHECK(rate_text(0.0123) == "0.012");
  CHECK(rate_text(0) == "0");
}

TEST_CASE("progress: times are minutes and seconds, with hours if there are any") {
  CHECK(clock_text(65) == "1:05");
  CHECK(clock_text(7210) == "2:00:10");
}
