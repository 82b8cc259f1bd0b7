#include <CLI/CLI.hpp>

#include "base/size.h"
#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_profile(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("profile", "measure how much every unit and every layer matters");
  auto args = std::make_shared<ProfileCommand>();
  command->add_option("MODEL", args->model, kModelHelp)->required();
  add_profile_options(*command, args->options);
  command->add_flag("--second-moments", args->options.second_moments,
                    "also X^T X of what goes into o and down, in float64");
  command->add_option("--imatrix", args->options.imatrix,
                      "llama.cpp's importance matrix, or an earlier profile, for the metric `imatrix`");
  command->add_option_function<std::string>(
      "--max-ram", [args](const std::string& text) { args->work.max_ram = parse_bytes(text); },
      "memory to stay within, as 4GiB: a model that does not fit is streamed layer by layer");
  command->add_flag("--resume", args->resume, "go on with unfinished work of the same command");
  command->add_option("--save-every", args->work.save_every, "seconds between saves of unfinished work")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("-o,--output", args->output, "profile to write, .h5")->required();
  command->footer(
      "Example: elastify profile models/SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt -o profile.h5\n"
      "On several machines or GPUs: mpirun -np 4 elastify profile ...");
  command->callback([args, &globals, &action] {
    args->options.seed = globals.seed;
    action = [args, &globals] { return run_profile(globals, *args); };
  });
}

}  // namespace elastify::cli
