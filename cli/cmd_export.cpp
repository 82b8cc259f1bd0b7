#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

#include "cli/export.h"

namespace elastify::cli {

void add_export(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<ExportCommand>();
  command.add_option("OUT", args->reordered, "directory that `elastify reorder` wrote")->required();
  add_section(command, call, "export");
  auto* hf = command.add_flag("--hf", args->hf,
                              "a Hugging Face directory per level, for transformers, and PEFT's adapters; "
                              "all layers of a level must be "
                              "equally wide; --type f32, f16 or bf16 [as the model is stored]");
  for (const char* flag : {"--packed", "--shared-common", "--max-ram", "--adapter-type", "--imatrix"})
    args->not_with_hf.push_back(flag);
  command.add_option("-o,--output", args->output, "directory to write")->required();
  command.footer(
      "Example: elastify export reordered --type q8_0 -o artifact\n"
      "         elastify export reordered --type q8_0 --packed -o packed\n"
      "         elastify export reordered --hf --levels 0.7,0.5 -o transformers");
  command.callback([args, hf, &command, &call] {
    if (call.config.export_.packed && call.config.export_.shared_common)
      throw CLI::ExcludesError("--packed", "--shared-common");
    for (const std::string& flag : args->not_with_hf)
      if (!hf->empty() && !command.get_option(flag)->empty()) throw CLI::ExcludesError("--hf", flag);
    pipeline::complete(call.config);
    call.action = [args, &call] { return args->hf ? run_export_hf(call, *args) : run_export(call, *args); };
  });
}

}  // namespace elastify::cli
