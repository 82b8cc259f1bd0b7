#include "base/error.h"
#include "cli/plan_output.h"
#include "nn/device.h"
#include "pipeline/fit_to_model.h"
#include "pipeline/measure_profile.h"
#include "pipeline/order.h"
#include "pipeline/reorder_model.h"

namespace elastify::cli {

Report work(const Invocation& call, const PlanCommand& command) {
  const std::vector<OutputLock> locks = claim_outputs(call, command);
  pipeline::RunConfig config = call.config;
  nn::set_threads(static_cast<int>(config.threads));
  const pipeline::OpenModel model = pipeline::open_model(command.model, config.tokenizer);
  const ModelSpec& spec = model.checkpoint.spec();
  pipeline::fit_to_model(config, spec);
  if (command.profile.empty())
    throw UsageError("neither a profile nor second moments to go by",
                     "--profile of an `elastify profile` with --second-moments");
  const Profile profile = pipeline::load_profile_of(model, command.profile);
  const pipeline::Calibration calibration = pipeline::calibration_of(config);
  const pipeline::Evidence evidence{&profile, pipeline::moments_of(command.profile, spec), &calibration};
  const Permutation order = pipeline::rank(model.checkpoint, &profile, evidence.moments,
                                           config.reorder.metric, config.seed, config.compute.device);
  const pipeline::MeasuredPlan measured = pipeline::plan_widths(model, evidence, order, config.reorder.plan);
  return write_plan(command, measured.plan, spec, &profile, measured.curves ? &*measured.curves : nullptr);
}

}  // namespace elastify::cli
