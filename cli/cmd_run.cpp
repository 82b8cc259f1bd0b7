#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_run(CLI::App& app, const Globals& globals, Action& action) {
  auto* command =
      app.add_subcommand("run", "profile, reorder, export, verify and evaluate, as a YAML file says");
  auto args = std::make_shared<RunCommand>();
  command->add_option("CONFIG", args->config, "YAML file, see configs/")->required();
  command->add_option("--set", args->overrides, "section.key=value, over the file")->allow_extra_args(false);
  command->add_flag("--resume", args->resume,
                    "go on after what is up to date (always done; --force starts over)");
  command->footer("Example: elastify run configs/smollm2_135m/quickstart.yaml --set profile.tokens=2048");
  command->callback([command, args, &globals, &action] {
    add_overrides(*command, args->overrides);
    action = [args, &globals] { return run_run(globals, *args); };
  });
}

}  // namespace elastify::cli
