#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/plan_text.h"

namespace elastify::cli {
namespace {

struct PlanCommand {
  fs::path model, profile, output, plot;
  plan::PlanOptions options;
  bool explain = false;
};

/// What prices are read off; nothing where the profile has no scores of this metric.
std::optional<plan::CostCurves> curves_of(const ModelSpec& spec, const std::optional<Profile>& profile,
                                          Metric metric) {
  if (!profile || !profile->importance.contains(metric)) return std::nullopt;
  return plan::curves_from_scores(spec, *profile, metric);
}

Report run_plan(const Globals& globals, const PlanCommand& command) {
  require_absent(command.output, globals.force);
  if (!command.plot.empty()) {
    if (command.plot.extension() == ".png")
      throw UsageError(fmt::format("{}: plots are SVG files", command.plot.string()),
                       "give a name in .svg; `rsvg-convert plan.svg -o plan.png` makes a PNG of it");
    require_absent(command.plot, globals.force);
  }
  const ModelSpec spec = Checkpoint::open(command.model).spec();
  std::optional<Profile> profile;
  if (!command.profile.empty()) profile = load_profile(command.profile, spec);
  const ElasticPlan plan = plan::make_plan(spec, profile ? &*profile : nullptr, command.options);
  save_plan(plan, spec, command.output);
  Report report = describe(plan, spec);
  report.json["output"] = command.output.string();
  if (command.explain || !command.plot.empty()) {
    const std::optional<plan::CostCurves> curves = curves_of(spec, profile, command.options.metric);
    const plan::Explanation explained =
        plan::explain(spec, plan, profile ? &*profile : nullptr, curves ? &*curves : nullptr);
    if (command.explain) add_explanation(report, explained);
    if (!command.plot.empty()) {
      write_text(command.plot,
                 explanation_svg(explained, fmt::format("{}: {} of {}", command.output.filename().string(),
                                                        plan.method, plan.budget)));
      report.json["plot"] = command.plot.string();
      report.text += fmt::format("plot -> {}\n", command.plot.string());
    }
  }
  report.text += fmt::format("{} levels -> {}\n", plan.levels.size(), command.output.string());
  return report;
}

}  // namespace

void add_plan(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("plan", "choose every level's widths, without touching weights");
  auto args = std::make_shared<PlanCommand>();
  command->add_option("MODEL", args->model, kModelHelp)->required();
  command->add_option("--profile", args->profile, "profile of this model; all plans but `uniform` need it");
  add_metric_option(*command, args->options.metric, "importance that `zscore` and `dp` go by");
  add_plan_options(*command, args->options);
  command->add_flag("--explain", args->explain, "say which layers stay wide at which level, and why");
  command->add_option("--plot", args->plot,
                      "SVG file to draw the widths into: heat maps of levels by layers");
  command->add_option("-o,--output", args->output, "plan to write, .json")->required();
  command->footer(
      "Example: elastify plan model --profile profile.h5 --plan anchors --levels 0.5,0.8 -o plan.json\n"
      "         elastify plan model --profile profile.h5 --plan dp --budget bytes:q4_k --grid 256 --explain "
      "-o "
      "plan.json");
  command->callback(
      [args, &globals, &action] { action = [args, &globals] { return run_plan(globals, *args); }; });
}

}  // namespace elastify::cli
