#include <cstdlib>

#include "cli/commands.h"
#include "cli/replace_process.h"

namespace elastify::cli {
namespace {

/// Threads that wait for others spin first, which is fast on an idle machine. On a busy one they take the
/// cores from the threads that they wait for. GOMP_SPINCOUNT bounds that; it is read when the OpenMP library
/// is loaded. docs/performance.md has the measurement. A value that the user has set stays.
void bound_spinning() {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", "30000", 0);
}

}  // namespace

Report with_torch(const Invocation&, const TorchCommand&) {
  bound_spinning();
  replace_process(this_program().parent_path() / "elastify-torch");
}

}  // namespace elastify::cli
