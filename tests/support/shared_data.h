#pragma once

#include <cstdlib>

#include "base/file.h"
#include "support/skip.h"

namespace elastify::test {

/// Models, texts and tasks that are not in the repository: ELASTIFY_SHARED_DATA, or ../shared/data.
inline fs::path shared_data() {
  if (const char* path = std::getenv("ELASTIFY_SHARED_DATA")) return path;
  return fs::path(ELASTIFY_SOURCE_DIR) / "../shared/data";
}

/// False, and the test case skips, where there is no shared data.
inline bool has_shared_data() {
  if (fs::exists(shared_data() / "models")) return true;
  skip(shared_data().lexically_normal().string() + " is absent (ELASTIFY_SHARED_DATA names another place)");
  return false;
}

}  // namespace elastify::test
