#include "model/compensation.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "support/errors.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("compensation: names go both ways, and unknown ones are refused with those that there are") {
  for (const std::string& name : compensation_names()) CHECK(name_of(compensation_named(name)) == name);
  CHECK(compensation_names().size() == 12);
  CHECK(name_of(compensation_named("norm+bias+baked")) == "baked+bias+norm");
  for (const char* wrong : {"", "+", "bias+", "+norm", "none+norm"})
    CHECK_THROWS_AS(compensation_named(wrong), UsageError);
  CHECK_THROWS_WITH_AS(compensation_named("adapter+baked"), doctest::Contains("baked+bias+norm"), UsageError);
  CHECK(message_of([] { compensation_named("magic"); }) ==
        "unknown compensation 'magic'; known are none, bias, norm, bias+norm, adapter, adapter+bias, "
        "adapter+norm, adapter+bias+norm, baked, baked+bias, baked+norm, baked+bias+norm");
}

TEST_CASE("compensation: files may state any parts, an adapter beside weights of the level's own, too") {
  CHECK(parts_named("") == Compensation::kNone);
  CHECK(parts_named("none") == Compensation::kNone);
  CHECK(name_of(parts_named("norm+adapter+baked")) == "adapter+baked+norm");
  CHECK(message_of([] { parts_named("adapter+rubber"); }) ==
        "unknown compensation 'rubber'; known are adapter, baked, bias, norm");
  CHECK(message_of([] { parts_named("bias+"); }) ==
        "unknown compensation ''; known are adapter, baked, bias, norm");
}
