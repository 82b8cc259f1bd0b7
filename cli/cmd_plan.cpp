#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/plan_text.h"

namespace elastify::cli {
namespace {

struct PlanCommand {
  fs::path model, profile, output;
  plan::PlanOptions options;
};

Report run_plan(const Globals& globals, const PlanCommand& command) {
  require_absent(command.output, globals.force);
  const ModelSpec spec = Checkpoint::open(command.model).spec();
  std::optional<Profile> profile;
  if (!command.profile.empty()) profile = load_profile(command.profile, spec);
  const ElasticPlan plan = plan::make_plan(spec, profile ? &*profile : nullptr, command.options);
  save_plan(plan, spec, command.output);
  Report report = describe(plan, spec);
  report.json["output"] = command.output.string();
  report.text += fmt::format("{} levels -> {}\n", plan.levels.size(), command.output.string());
  return report;
}

}  // namespace

void add_plan(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("plan", "choose every level's widths, without touching weights");
  auto args = std::make_shared<PlanCommand>();
  command->add_option("MODEL", args->model, kModelHelp)->required();
  command->add_option("--profile", args->profile, "profile of this model; the plan `anchors` needs it");
  add_plan_options(*command, args->options);
  command->add_option("-o,--output", args->output, "plan to write, .json")->required();
  command->footer(
      "Example: elastify plan model --profile profile.h5 --plan anchors --levels 0.5,0.8 -o plan.json");
  command->callback(
      [args, &globals, &action] { action = [args, &globals] { return run_plan(globals, *args); }; });
}

}  // namespace elastify::cli
