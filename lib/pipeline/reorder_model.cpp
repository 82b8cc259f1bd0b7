#include "pipeline/reorder_model.h"

#include "base/error.h"
#include "base/log.h"
#include "pipeline/order.h"
#include "pipeline/repairs.h"
#include "reorder/reorder_model.h"

namespace elastify::pipeline {

Calibration calibration_of(const RunConfig& config) {
  return {config.profile.text, config.compute, config.max_ram};
}

Calibration fitting_calibration(const RunConfig& config) {
  Calibration calibration = calibration_of(config);
  if (config.reorder.fit_tokens > 0) calibration.text.tokens = config.reorder.fit_tokens;
  return calibration;
}

ElasticPlan write_reordered(const OpenModel& model, const Evidence& evidence, const RunConfig& config,
                            const fs::path& output, bool replace, const ElasticPlan* given) {
  require_absent(output, replace);
  const ReorderSection& options = config.reorder;
  const bool repaired = options.repair.compensation != Compensation::kNone;
  if (repaired && config.profile.text.data.empty())
    throw UsageError(fmt::format("compensation '{}' needs calibration text, and none is given",
                                 name_of(options.repair.compensation)),
                     "--data FILE... (or self), beside --profile too");
  const std::string device = evidence.calibration != nullptr ? evidence.calibration->compute.device : "cpu";
  const Permutation permutation =
      rank(model.checkpoint, evidence.profile, evidence.moments, options.metric, config.seed, device);
  const ElasticPlan plan =
      given != nullptr ? *given : plan_widths(model, evidence, permutation, options.plan).plan;
  for (const auto& note : plan.notes) log::info("{}", note);
  AtomicDirectory directory(output, replace);
  reorder::reorder_model(model.checkpoint, model.vocabulary ? &*model.vocabulary : nullptr, permutation, plan,
                         options.reorder, directory.path());
  if (repaired) write_repairs(model, plan, options.repair, fitting_calibration(config), directory.path());
  directory.commit();
  return plan;
}

}  // namespace elastify::pipeline
