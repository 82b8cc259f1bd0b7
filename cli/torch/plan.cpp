#include "base/error.h"
#include "cli/commands.h"
#include "nn/device.h"
#include "pipeline/widths.h"

namespace elastify::cli {

Report run_measured_plan(const Globals& globals, const PlanCommand& command) {
  nn::set_threads(globals.threads);
  const pipeline::OpenModel model = pipeline::open_model(command.model, globals.tokenizer);
  const ModelSpec& spec = model.checkpoint.spec();
  if (command.profile.empty())
    throw UsageError("neither a profile nor second moments to go by",
                     "--profile of an `elastify profile` with --second-moments");
  const Profile profile = pipeline::load_profile_of(model, command.profile);
  const MomentSource moments = pipeline::moments_of(command.profile, spec);
  pipeline::ReorderSection options;
  options.metric = command.options.metric;
  options.plan = command.options;
  const Permutation order =
      pipeline::rank(model.checkpoint, &profile, moments, options, globals.seed, globals.compute.device);
  pipeline::Calibration calibration{command.text, globals.compute, {}};
  calibration.text.removal_tokens = command.text.tokens;
  const pipeline::MeasuredPlan measured =
      pipeline::plan_widths(model, &profile, moments, order, options, globals.seed, &calibration);
  return write_plan(command, measured.plan, spec, &profile, measured.curves ? &*measured.curves : nullptr);
}

}  // namespace elastify::cli
