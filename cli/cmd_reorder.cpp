#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {
namespace {

/// \throws CLI::ParseError  if `--profile` and `--data` do not go together
void check_sources(const ReorderCommand& args, const Invocation& call) {
  const pipeline::ReorderSection& options = call.config.reorder;
  const bool repaired = options.repair.compensation != Compensation::kNone;
  const bool has_text = !call.config.profile.text.data.empty();
  if (!args.profile.empty() && has_text && !repaired && !plan::facts_of(options.plan.method).measures_losses)
    throw CLI::ValidationError(
        "--data",
        "--profile has been measured already; both are for --compensate and the plans dp and dp+kl only");
  if (repaired && !has_text)
    throw CLI::RequiredError("--compensate fits on text: --data FILE... (or self), beside --profile too,");
}

}  // namespace

void add_reorder(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<ReorderCommand>();
  command.add_option("MODEL", args->model, kModelHelp)->required();
  command.add_option("--profile", args->profile,
                     "profile of this model; without it, one is measured with --data");
  add_flags(command, call, [](const options::Option& option) { return option.key() == "preset"; });
  add_section(command, call, "profile", {"profile.metrics", "profile.second_moments", "profile.save_every"});
  add_section(command, call, "reorder");
  auto* widths =
      command.add_option("--widths", args->widths, "plan.json of `elastify plan`, instead of a new plan");
  for (const options::Option& option : call.options.all())
    if (option.heading() == "widths") {
      const std::string flags = option.flags();
      widths->excludes(command.get_option(flags.substr(0, flags.find(','))));
    }
  command.add_option("-o,--output", args->output, "directory to write")->required();
  command.footer(
      "Example: elastify reorder models/SmolLM2-135M-Instruct.Q4_1.gguf --data text.txt -o reordered");
  command.callback([args, &call] {
    // A given profile determines what is available. Presets assume that the profile is measured, too.
    if (!args->profile.empty() && !call.given("preset")) call.config.preset = "none";
    pipeline::complete(call.config);
    check_sources(*args, call);
    call.action = [args, &call] { return with_torch(call, *args); };
  });
}

}  // namespace elastify::cli
