#pragma once

#include <string>
#include <vector>

#include "cli/commands.h"

namespace elastify::cli {

struct ExportCommand {
  fs::path reordered, output;
  bool hf = false;  ///< write Hugging Face directories, in the stored type if none is given
  std::vector<std::string> not_with_hf;  ///< flags that only GGUF files have
};

// Exporting needs no LibTorch.
Report run_export(const Invocation& call, const ExportCommand& command);
Report run_export_hf(const Invocation& call, const ExportCommand& command);

}  // namespace elastify::cli
