#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_profile(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("profile", "measure how much every unit and every layer matters");
  auto args = std::make_shared<ProfileCommand>();
  command->add_option("MODEL", args->model, kModelHelp)->required();
  add_profile_options(*command, args->options);
  command->add_option("-o,--output", args->output, "profile to write, .h5")->required();
  command->footer(
      "Example: elastify profile models/SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt -o profile.h5");
  command->callback([args, &globals, &action] {
    args->options.seed = globals.seed;
    action = [args, &globals] { return run_profile(globals, *args); };
  });
}

}  // namespace elastify::cli
