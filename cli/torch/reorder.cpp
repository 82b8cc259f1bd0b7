#include "base/error.h"
#include "base/log.h"
#include "cli/claim.h"
#include "cli/torch/work.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/fit_to_model.h"
#include "pipeline/measure_profile.h"
#include "pipeline/order.h"
#include "pipeline/reorder_model.h"
#include "report/plan_view.h"

namespace elastify::cli {
namespace {

/// A profile and its second moments: read, or measured now.
struct Measurements {
  std::optional<Profile> profile;
  MomentSource moments;
};

Measurements measure(const pipeline::OpenModel& model, const pipeline::RunConfig& config,
                     const ReorderCommand& command) {
  const plan::MethodFacts facts = plan::facts_of(config.reorder.plan.method);
  if (!command.profile.empty())
    return {pipeline::load_profile_of(model, command.profile),
            pipeline::moments_of(command.profile, model.checkpoint.spec())};
  if (!config.profile.text.data.empty() || config.reorder.metric == Metric::kImatrix) {
    nn::warn_if_blas_is_slow();
    profile::ProfileOptions options = config.profile;
    options.metrics = {config.reorder.metric};
    if (!facts.needs_removal || options.text.data.empty()) options.removal_tokens = 0;
    profile::WorkOptions work;
    work.max_ram = config.max_ram;
    work.existing = profile::WorkOptions::Existing::kResumeOrReplace;
    const fs::path directory = config.max_ram > 0 ? pipeline::unfinished_path(command.output) : fs::path();
    pipeline::Measured measured = pipeline::measure_profile(model, config.compute, options, work, directory);
    return {std::move(measured.profile), std::move(measured.moments)};
  }
  if (needs_data(config.reorder.metric) || facts.needs_profile)
    throw UsageError("neither a profile nor calibration text",
                     "--data FILE... (or self), or --profile of an earlier `elastify profile`");
  return {};
}

/// The options that the preset set, in one line; empty if there are none.
std::string preset_text(const pipeline::RunConfig& config) {
  std::string text;
  for (const auto& [key, source] : config.sources)
    if (source.starts_with("preset"))
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key.substr(key.find('.') + 1),
                          options::text_of(value_of(config, key)));
  return text.empty() ? "" : fmt::format("preset {}: {}\n", config.preset, text);
}

}  // namespace

Report work(const Invocation& call, const ReorderCommand& command) {
  const OutputLock lock = claim(call, command.output, {command.model, command.profile, command.widths});
  pipeline::RunConfig config = call.config;
  nn::set_threads(static_cast<int>(config.threads));
  const pipeline::OpenModel model = pipeline::open_model(command.model, config.tokenizer);
  const ModelSpec& spec = model.checkpoint.spec();
  pipeline::fit_to_model(config, spec);
  pipeline::fit_batch(config, spec);
  std::optional<ElasticPlan> given;
  if (!command.widths.empty()) given = load_plan(command.widths, spec);
  const Measurements measurements = measure(model, config, command);
  const pipeline::Calibration calibration = pipeline::calibration_of(config);
  const pipeline::Evidence evidence{measurements.profile ? &*measurements.profile : nullptr,
                                    measurements.moments, &calibration};
  const ElasticPlan plan = pipeline::write_reordered(model, evidence, config, command.output, call.force,
                                                     given ? &*given : nullptr);
  if (config.max_ram > 0 && command.profile.empty()) {  // the second moments of a streamed profile
    std::error_code ignored;
    fs::remove_all(pipeline::unfinished_path(command.output), ignored);
  }
  Report report = report::view_plan(plan, spec);
  const std::string compensation = name_of(config.reorder.repair.compensation);
  report.json["preset"] = config.preset;
  report.json["metric"] = name_of(config.reorder.metric);
  report.json["compensate"] = compensation;
  report.json["options"] = to_json(config);
  report.json["sources"] = config.sources;
  report.json["output"] = command.output.string();
  report.text += preset_text(config);
  report.text += fmt::format(
      "reordered by {}, {} levels{} -> {}\n", name_of(config.reorder.metric), plan.levels.size(),
      compensation == "none" ? "" : fmt::format(", repairs: {}", compensation), command.output.string());
  return report;
}

}  // namespace elastify::cli
