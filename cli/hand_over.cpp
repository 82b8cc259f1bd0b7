#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/progress.h"
#include "cli/arguments.h"
#include "cli/commands.h"

namespace elastify::cli {

void hand_over() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  const fs::path torch = self.parent_path() / "elastify-torch";
  hold_interrupts();
  check_interrupt();
  execv(torch.c_str(), arguments);
  throw Error(fmt::format("{}: cannot start: {}", torch.string(), std::strerror(errno)),
              "elastify-torch belongs beside elastify; build or install both");
}

}  // namespace elastify::cli
