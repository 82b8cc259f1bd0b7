#include <CLI/CLI.hpp>

#include "cli/commands.h"

namespace elastify::cli {

void add_eval(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("eval", "perplexity on a text, or accuracy on a multiple-choice task");
  auto args = std::make_shared<EvalCommand>();
  args->options.tokens = 0;
  command->add_option("PATH", args->path, "model, reordered directory or artifact")->required();
  command->add_option("--level", args->level, "width level, as in 0.5 [the full model]")
      ->check(CLI::Range(0.0, 1.0));
  command->add_flag_callback(
      "--no-repairs", [args] { args->repairs = false; }, "leave the level's repairs off");
  auto* data = command->add_option("--data", args->options.data, "text files (.txt, .jsonl): perplexity");
  auto* task =
      command->add_option("--task", args->task, "multiple-choice items (.jsonl): accuracy")->excludes(data);
  command->add_option("--tokens", args->options.tokens, "tokens of the text; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seq", args->options.seq, "tokens per sequence")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--batch", args->options.batch, "sequences per forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer("Example: elastify eval reordered --level 0.5 --data held-out.txt --json");
  command->callback([args, data, task, &globals, &action] {
    if (data->empty() && task->empty()) throw CLI::RequiredError("--data or --task");
    action = [args, &globals] { return run_eval(globals, *args); };
  });
}

}  // namespace elastify::cli
