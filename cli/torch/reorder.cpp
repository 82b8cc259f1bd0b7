#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/plan_text.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/repairs.h"
#include "pipeline/steps.h"
#include "pipeline/widths.h"

namespace elastify::cli {

Report run_reorder(const Globals& globals, const ReorderCommand& command) {
  require_absent(command.output, globals.force);
  pipeline::ReorderSection options = command.options;
  options.repair.compensation = compensation_named(command.compensation);
  nn::set_threads(globals.threads);
  const pipeline::OpenModel model = pipeline::open_model(command.model, globals.tokenizer);
  const ModelSpec& spec = model.checkpoint.spec();
  std::optional<Profile> profile;
  std::optional<ElasticPlan> given;
  if (!command.widths.empty()) given = load_plan(command.widths, spec);
  MomentSource moments;
  if (!command.profile.empty()) {
    profile = pipeline::load_profile_of(model, command.profile);
    moments = pipeline::moments_of(command.profile, spec);
  } else if (!command.profiling.data.empty()) {
    nn::warn_if_blas_is_slow();
    profile::ProfileOptions profiling = command.profiling;
    profiling.metrics = {command.options.metric};
    if (!plan::goes_by_removal_loss(command.options.plan.method)) profiling.removal_tokens = 0;
    profiling.second_moments |= pipeline::needs_moments(command.options.plan.method);
    pipeline::Measured measured = pipeline::measure_profile(model, globals.compute, profiling);
    profile = std::move(measured.profile);
    moments = std::move(measured.moments);
  } else if (needs_data(command.options.metric) || command.options.plan.method != plan::Method::kUniform) {
    throw UsageError("neither a profile nor calibration text",
                     "--data FILE... (or self), or --profile of an earlier `elastify profile`");
  }
  const pipeline::Calibration calibration{command.profiling, globals.compute, {}};
  const ElasticPlan plan =
      pipeline::write_reordered(model, profile ? &*profile : nullptr, moments, options, globals.seed,
                                command.output, globals.force, &calibration, given ? &*given : nullptr);
  Report report = describe(plan, spec);
  report.json["metric"] = name_of(command.options.metric);
  const std::string compensation = name_of(options.repair.compensation);
  report.json["compensate"] = compensation;
  report.json["output"] = command.output.string();
  report.text += fmt::format(
      "reordered by {}, {} levels{} -> {}\n", name_of(command.options.metric), plan.levels.size(),
      compensation == "none" ? "" : fmt::format(", repairs: {}", compensation), command.output.string());
  return report;
}

}  // namespace elastify::cli
