#include "cli/replace_process.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/progress.h"
#include "cli/arguments.h"

namespace elastify::cli {

fs::path this_program() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/exe", ignored);
}

void replace_process(const fs::path& program) {
  hold_interrupts();
  check_interrupt();
  execv(program.c_str(), arguments);
  throw Error(fmt::format("{}: cannot start: {}", program.string(), std::strerror(errno)),
              "elastify-torch belongs beside elastify; build or install both");
}

}  // namespace elastify::cli
