#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_sweep(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand(
      "sweep",
      "perplexity at every level for a grid of metrics, plans and other options, as a YAML file says");
  auto args = std::make_shared<SweepCommand>();
  command->add_option("CONFIG", args->config, "YAML file with a section `grid`, see configs/")->required();
  command
      ->add_option("--set", args->overrides, "section.key=value or grid.section.key=[values], over the file")
      ->allow_extra_args(false);
  command->add_flag("--resume", args->resume,
                    "go on after what is known already (always done; --force starts over)");
  command->footer(
      "Example: elastify sweep configs/stories3m/metrics_sweep.yaml --set 'grid.seed=[0, 1]'\n"
      "Writes sweep.csv, sweep.json and sweep.svg into the file's output directory.");
  command->callback([command, args, &globals, &action] {
    add_overrides(*command, args->overrides);
    action = [args, &globals] { return run_sweep(globals, *args); };
  });
}

}  // namespace elastify::cli
