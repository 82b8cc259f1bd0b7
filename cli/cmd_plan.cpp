#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/log.h"
#include "cli/claim.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/plan_output.h"
#include "model/checkpoint.h"
#include "pipeline/fit_to_model.h"
#include "plan/explain.h"
#include "plan/make_plan.h"
#include "report/plan_view.h"

namespace elastify::cli {
namespace {

/// Cost curves for --explain; none if the profile has no scores of this metric.
std::optional<plan::CostCurves> curves_of(const ModelSpec& spec, const std::optional<Profile>& profile,
                                          Metric metric) {
  if (!profile || !profile->importance.contains(metric)) return std::nullopt;
  return plan::curves_from_scores(spec, *profile, metric);
}

Report run_plan(Invocation& call, const PlanCommand& command) {
  const plan::PlanOptions& options = call.config.reorder.plan;
  const bool has_text = !call.config.profile.text.data.empty();
  if (options.method == plan::Method::kDpKl || (options.method == plan::Method::kDp && has_text))
    return with_torch(call, command);
  const std::vector<OutputLock> locks = claim_outputs(call, command);
  const ModelSpec spec = Checkpoint::open(command.model).spec();
  pipeline::fit_to_model(call.config, spec);
  std::optional<Profile> profile;
  if (!command.profile.empty()) profile = load_profile(command.profile, spec);
  const ElasticPlan plan = plan::make_plan(spec, profile ? &*profile : nullptr, options);
  if (options.method == plan::Method::kDp)
    log::info(
        "`dp` by the scores of `{}`, which tell little of attention against MLP; by measured losses with "
        "--data TEXT and a profile with --second-moments",
        name_of(options.metric));
  const std::optional<plan::CostCurves> curves = curves_of(spec, profile, options.metric);
  return write_plan(command, plan, spec, profile ? &*profile : nullptr, curves ? &*curves : nullptr);
}

}  // namespace

std::vector<OutputLock> claim_outputs(const Invocation& call, const PlanCommand& command) {
  std::vector<OutputLock> locks;
  locks.push_back(claim(call, command.output, {command.model, command.profile}));
  if (command.plot.empty()) return locks;
  if (command.plot.extension() == ".png")
    throw UsageError(fmt::format("{}: plots are SVG files", command.plot.string()),
                     "give a name in .svg; `rsvg-convert plan.svg -o plan.png` makes a PNG of it");
  locks.push_back(claim(call, command.plot, {command.model, command.profile, command.output}));
  return locks;
}

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

void add_plan(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<PlanCommand>();
  command.add_option("MODEL", args->model, kModelHelp)->required();
  command.add_option("--profile", args->profile, "profile of this model; all plans but `uniform` need it");
  add_flags(command, call, [](const options::Option& option) {
    return option.heading() == "widths" || option.key() == "reorder.metric";
  });
  add_flags(command, call, [](const options::Option& option) {
    return option.key() == "profile.data" || option.key() == "profile.seq" || option.key() == "profile.batch";
  });
  command.add_flag("--explain", args->explain, "say which layers stay wide at which level, and why");
  command.add_option("--plot", args->plot, "SVG file to draw the widths into: heat maps of levels by layers");
  command.add_option("-o,--output", args->output, "plan to write, .json")->required();
  command.footer(
      "Example: elastify plan model --profile profile.h5 --plan anchors --levels 0.5,0.8 -o plan.json\n"
      "         elastify plan model --profile profile.h5 --plan dp --budget bytes:q4_k --grid 256 --explain "
      "-o "
      "plan.json\n"
      "         elastify plan model --profile profile.h5 --metric gram --plan dp+kl --data text.txt -o "
      "plan.json");
  command.callback([args, &call] {
    call.config.preset = "none";  // the profile exists already, and only widths are asked for
    pipeline::complete(call.config);
    call.action = [args, &call] { return run_plan(call, *args); };
  });
}

}  // namespace elastify::cli
