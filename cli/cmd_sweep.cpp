#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_sweep(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<SweepCommand>();
  command.add_option("CONFIG", args->config, "YAML file with a section `grid` or `rows`, see configs/")
      ->required();
  command
      .add_option("--set", args->overrides, "section.key=value or grid.section.key=[values], over the file")
      ->allow_extra_args(false);
  command.footer(
      "Example: elastify sweep configs/stories3m/metrics_sweep.yaml --set 'grid.seed=[0, 1]'\n"
      "Writes sweep.csv, sweep.json and sweep.svg into the file's output directory, and goes on after what "
      "is "
      "known already, unless with --force.");
  command.callback([args, &call] {
    for (const std::string& override : overrides_of(call)) args->overrides.push_back(override);
    call.action = [args, &call] { return with_torch(call, *args); };
  });
}

}  // namespace elastify::cli
