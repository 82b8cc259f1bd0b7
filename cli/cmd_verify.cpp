#include <CLI/CLI.hpp>

#include "cli/commands.h"

namespace elastify::cli {

void add_verify(CLI::App& app, const Globals& globals, Action& action) {
  auto* command =
      app.add_subcommand("verify", "prove that an output is its source, reordered; exit 1 if it is not");
  auto args = std::make_shared<VerifyCommand>();
  command->add_option("PATH", args->path, "directory that `elastify reorder` or `elastify export` wrote")
      ->required();
  command->add_option("--against", args->against, "the model it was made from")->required();
  command
      ->add_option("--tolerance", args->options.tolerance, "of logits, relative to their standard deviation")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer("Example: elastify verify artifact --against models/SmolLM2-135M-Instruct.Q4_1.gguf");
  command->callback([args, &globals, &action] {
    args->options.seed = globals.seed;
    action = [args, &globals] { return run_verify(globals, *args); };
  });
}

}  // namespace elastify::cli
