#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "base/file.h"

namespace elastify::test {

/// Models, texts and tasks that are not in the repository: ELASTIFY_SHARED_DATA, or ../shared/data.
inline fs::path shared_data() {
  if (const char* path = std::getenv("ELASTIFY_SHARED_DATA")) return path;
  return fs::path(ELASTIFY_SOURCE_DIR) / "../shared/data";
}

/// False, with the test's name said, where there is no shared data: the test then returns.
inline bool has_shared_data(const std::string& test) {
  if (fs::exists(shared_data() / "models")) return true;
  MESSAGE("skipped, no shared data at " << shared_data().string() << ": " << test);
  return false;
}

}  // namespace elastify::test
