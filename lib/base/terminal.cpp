#include "base/terminal.h"

#include <cstdio>

namespace elastify {

void write_stderr(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace elastify
