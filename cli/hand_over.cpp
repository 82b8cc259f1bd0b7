#include "cli/commands.h"
#include "cli/replace_process.h"

namespace elastify::cli {

Report with_torch(const Invocation&, const TorchCommand&) {
  replace_process(this_program().parent_path() / "elastify-torch");
}

}  // namespace elastify::cli
