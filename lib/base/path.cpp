#include "base/path.h"

namespace elastify {

std::filesystem::path without_trailing_slash(std::filesystem::path path) {
  while (path.has_relative_path() && (!path.has_filename() || path.filename() == ".") &&
         path.has_parent_path())
    path = path.parent_path();
  return path;
}

}  // namespace elastify
