#include "cli/claim.h"

#include "base/log.h"
#include "pipeline/outputs.h"

namespace elastify::cli {

OutputLock claim(const Invocation& call, const fs::path& output, std::vector<fs::path> inputs) {
  for (const fs::path& named : pipeline::inputs_of(call.config)) inputs.push_back(named);
  pipeline::require_writable(output, inputs, call.force);  // before the lock makes a directory
  OutputLock lock(output);
  const std::string replaced = pipeline::require_writable(output, inputs, call.force);
  if (!replaced.empty()) log::info("{}: replaces {}", output.string(), replaced);
  return lock;
}

}  // namespace elastify::cli
