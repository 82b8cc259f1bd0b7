#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_run(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<RunCommand>();
  command.add_option("CONFIG", args->config, "YAML file, see configs/")->required();
  command.add_option("--set", args->overrides, "section.key=value, over the file")->allow_extra_args(false);
  add_flags(command, call, [](const options::Option& option) { return option.key() == "preset"; });
  command.footer(
      "Example: elastify run configs/smollm2_135m/quickstart.yaml --set profile.tokens=2048\n"
      "Stages that are up to date are not run again, unless with --force. `elastify options` lists the "
      "keys.");
  command.callback([args, &call] {
    for (const std::string& override : overrides_of(call)) args->overrides.push_back(override);
    call.action = [args, &call] { return with_torch(call, *args); };
  });
}

}  // namespace elastify::cli
