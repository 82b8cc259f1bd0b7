#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "plan/explain.h"
#include "report/plan_view.h"

namespace elastify::cli {
namespace {

/// What prices are read off; nothing where the profile has no scores of this metric.
std::optional<plan::CostCurves> curves_of(const ModelSpec& spec, const std::optional<Profile>& profile,
                                          Metric metric) {
  if (!profile || !profile->importance.contains(metric)) return std::nullopt;
  return plan::curves_from_scores(spec, *profile, metric);
}

void require_outputs_absent(const PlanCommand& command, bool force) {
  require_absent(command.output, force);
  if (command.plot.empty()) return;
  if (command.plot.extension() == ".png")
    throw UsageError(fmt::format("{}: plots are SVG files", command.plot.string()),
                     "give a name in .svg; `rsvg-convert plan.svg -o plan.png` makes a PNG of it");
  require_absent(command.plot, force);
}

Report run_plan(const Globals& globals, const PlanCommand& command) {
  require_outputs_absent(command, globals.force);
  const plan::Method method = command.options.method;
  if (method == plan::Method::kDpKl || (method == plan::Method::kDp && !command.text.data.empty()))
    return run_measured_plan(globals, command);
  const ModelSpec spec = Checkpoint::open(command.model).spec();
  std::optional<Profile> profile;
  if (!command.profile.empty()) profile = load_profile(command.profile, spec);
  const ElasticPlan plan = plan::make_plan(spec, profile ? &*profile : nullptr, command.options);
  if (method == plan::Method::kDp)
    log::info(
        "`dp` by the scores of `{}`, which tell little of attention against MLP; by measured losses with "
        "--data TEXT and a profile with --second-moments",
        name_of(command.options.metric));
  const std::optional<plan::CostCurves> curves = curves_of(spec, profile, command.options.metric);
  return write_plan(command, plan, spec, profile ? &*profile : nullptr, curves ? &*curves : nullptr);
}

}  // namespace

Report write_plan(const PlanCommand& command, const ElasticPlan& plan, const ModelSpec& spec,
                  const Profile* profile, const plan::CostCurves* curves) {
  save_plan(plan, spec, command.output);
  Report report = report::view_plan(plan, spec);
  report.json["output"] = command.output.string();
  if (command.explain || !command.plot.empty()) {
    const report::PlanExplanation explained = plan::explain(spec, plan, profile, curves);
    if (command.explain) report::add_explanation(report, explained);
    if (!command.plot.empty()) {
      write_text(command.plot, report::explanation_svg(
                                   explained, fmt::format("{}: {} of {}", command.output.filename().string(),
                                                          plan.method, plan.budget)));
      report.json["plot"] = command.plot.string();
      report.text += fmt::format("plot -> {}\n", command.plot.string());
    }
  }
  report.text += fmt::format("{} levels -> {}\n", plan.levels.size(), command.output.string());
  return report;
}

void add_plan(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand("plan", "choose every level's widths, without touching weights");
  auto args = std::make_shared<PlanCommand>();
  command->add_option("MODEL", args->model, kModelHelp)->required();
  command->add_option("--profile", args->profile, "profile of this model; all plans but `uniform` need it");
  add_metric_option(*command, args->options.metric, "importance that `zscore` and `dp` go by");
  add_plan_options(*command, args->options);
  args->text.tokens = 1024;
  auto* text = command->add_option_group(
      "text", "what `dp` (with second moments in the profile) and `dp+kl` measure losses on");
  add_text_options(*text, args->text);
  command->add_flag("--explain", args->explain, "say which layers stay wide at which level, and why");
  command->add_option("--plot", args->plot,
                      "SVG file to draw the widths into: heat maps of levels by layers");
  command->add_option("-o,--output", args->output, "plan to write, .json")->required();
  command->footer(
      "Example: elastify plan model --profile profile.h5 --plan anchors --levels 0.5,0.8 -o plan.json\n"
      "         elastify plan model --profile profile.h5 --plan dp --budget bytes:q4_k --grid 256 --explain "
      "-o "
      "plan.json\n"
      "         elastify plan model --profile profile.h5 --metric gram --plan dp+kl --data text.txt -o "
      "plan.json");
  command->callback([args, &globals, &action] {
    if (args->text.tokens == 0)
      throw CLI::ValidationError("--tokens", "say how many: every plan is measured on all of them");
    args->text.seed = globals.seed;
    action = [args, &globals] { return run_plan(globals, *args); };
  });
}

}  // namespace elastify::cli
