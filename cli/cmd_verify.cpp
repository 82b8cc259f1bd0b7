#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_verify(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<VerifyCommand>();
  command.add_option("PATH", args->path, "directory that `elastify reorder` or `elastify export` wrote")
      ->required();
  command.add_option("--against", args->against, "the model it was made from")->required();
  add_section(command, call, "verify");
  command.footer("Example: elastify verify artifact --against models/SmolLM2-135M-Instruct.Q4_1.gguf");
  command.callback([args, &call] {
    pipeline::complete(call.config);
    call.action = [args, &call] { return with_torch(call, *args); };
  });
}

}  // namespace elastify::cli
