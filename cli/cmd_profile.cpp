#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_profile(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<ProfileCommand>();
  command.add_option("MODEL", args->model, kModelHelp)->required();
  add_section(command, call, "profile");
  command.add_flag("--resume", args->resume, "go on with unfinished work of the same command");
  command.add_option("-o,--output", args->output, "profile to write, .h5")->required();
  command.footer(
      "Example: elastify profile models/SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt -o profile.h5\n"
      "On several machines or GPUs: mpirun -np 4 elastify profile ...");
  command.callback([args, &call] { call.action = [args, &call] { return with_torch(call, *args); }; });
}

}  // namespace elastify::cli
