#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/progress.h"
#include "cli/commands.h"

namespace elastify::cli {
namespace {

[[noreturn]] Report hand_over() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  const fs::path torch = self.parent_path() / "elastify-torch";
  hold_interrupts();
  check_interrupt();
  execv(torch.c_str(), arguments);
  throw Error(fmt::format("{}: cannot start: {}", torch.string(), std::strerror(errno)),
              "elastify-torch belongs beside elastify; build or install both");
}

}  // namespace

Report run_system(const Globals&) {
  hand_over();
}
Report run_profile(const Globals&, const ProfileCommand&) {
  hand_over();
}
Report run_measured_plan(const Globals&, const PlanCommand&) {
  hand_over();
}
Report run_reorder(const Globals&, const ReorderCommand&) {
  hand_over();
}
Report run_verify(const Globals&, const VerifyCommand&) {
  hand_over();
}
Report run_eval(const Globals&, const EvalCommand&) {
  hand_over();
}
Report run_run(const Globals&, const RunCommand&) {
  hand_over();
}
Report run_sweep(const Globals&, const SweepCommand&) {
  hand_over();
}

}  // namespace elastify::cli
