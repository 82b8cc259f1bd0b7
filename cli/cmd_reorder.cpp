#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_reorder(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("reorder", "put the most important units first, and plan the levels");
  auto args = std::make_shared<ReorderCommand>();
  command->add_option("MODEL", args->model, kModelHelp)->required();
  auto* profile = command->add_option("--profile", args->profile,
                                      "profile of this model; without it, one is measured with --data");
  add_profile_options(*command, args->profiling, false);
  add_metric_option(*command, args->options.metric);
  add_plan_options(*command, args->options.plan);
  auto* widths =
      command->add_option("--widths", args->widths, "plan.json of `elastify plan`, instead of a new plan");
  for (const char* planning : {"--plan", "--levels", "--budget", "--grid", "--min-width", "--depth",
                               "--search-seq", "--search-steps", "--anchor-share"})
    widths->excludes(command->get_option(planning));
  add_repair_options(*command, args->compensation, args->options);
  command
      ->add_option("--storage", args->options.reorder.dtype,
                   "type to store tensors in: f32, f16, bf16 [the source's; f32 if quantised]")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
  command->add_option("-o,--output", args->output, "directory to write")->required();
  command->footer(
      "Example: elastify reorder models/SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt -o reordered");
  command->callback([args, profile, data = command->get_option("--data"), &globals, &action] {
    const bool repaired = args->compensation != "none";
    const plan::Method method = args->options.plan.method;
    const bool measures = repaired || method == plan::Method::kDp || method == plan::Method::kDpKl;
    if (!profile->empty() && !data->empty() && !measures)
      throw CLI::ValidationError(
          "--data",
          "--profile has been measured already; both are for --compensate and the plans dp and dp+kl only");
    if (repaired && data->empty())
      throw CLI::RequiredError("--compensate fits on text: --data FILE... (or self), beside --profile too,");
    args->profiling.seed = globals.seed;
    args->options.plan.metric = args->options.metric;
    action = [args, &globals] { return run_reorder(globals, *args); };
  });
}

}  // namespace elastify::cli
