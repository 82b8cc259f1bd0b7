#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_eval(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<EvalCommand>();
  command.add_option("PATH", args->path, "model, reordered directory or artifact")->required();
  command.add_option("--level", args->level, "width level, as in 0.5 [the full model]")->check(level_error);
  command.add_flag_callback(
      "--no-repairs", [args] { args->repairs = false; }, "leave the level's repairs off");
  add_section(command, call, "eval");
  command.footer("Example: elastify eval reordered --level 0.5 --data held-out.txt --json");
  command.callback([args, &call] {
    const eval::EvalOptions& options = call.config.eval;
    if (options.text.data.empty() && options.tasks.empty()) throw CLI::RequiredError("--data or --task");
    if (!options.text.data.empty() && !options.tasks.empty()) throw CLI::ExcludesError("--task", "--data");
    call.action = [args, &call] { return with_torch(call, *args); };
  });
}

}  // namespace elastify::cli
