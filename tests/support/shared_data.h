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

/// Whether there is shared data. If not, the test case skips.
inline bool has_shared_data() {
  if (fs::exists(shared_data() / "models")) return true;
  skip(shared_data().lexically_normal().string() + " is absent (ELASTIFY_SHARED_DATA names another place)");
  return false;
}

}  // namespace elastify::test
