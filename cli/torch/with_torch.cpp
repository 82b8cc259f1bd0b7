#include <cstdlib>

#include "base/openblas.h"
#include "cli/replace_process.h"
#include "cli/torch/work.h"

namespace elastify::cli {

Report with_torch(const Invocation& call, const TorchCommand& command) {
  if (const auto kernels = missed_openblas_kernels()) {
    setenv(kOpenBlasCoreType, kernels->c_str(), 1);
    replace_process(this_program());
  }
  return std::visit([&](const auto& chosen) { return work(call, chosen); }, command);
}

}  // namespace elastify::cli
