#include "support/elastic_fixture.h"

#include <nlohmann/json.hpp>

#include "pipeline/steps.h"
#include "support/tiny_model.h"

namespace elastify::test {

ElasticFixture::ElasticFixture(const ModelSpec& spec, DType type, plan::Method method, uint64_t seed) {
  write_tiny_hf_model(spec, model(), seed);
  pipeline::ReorderSection options;
  options.metric = Metric::kRandom;
  options.plan.method = method;
  options.plan.levels = {0.6, 0.8, 1.0};
  options.plan.anchor_share = 0.5;
  options.plan.grid = is_float(type) ? 8 : 32;
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    profile.removal_loss.push_back(static_cast<double>(layer));
  const pipeline::OpenModel source = pipeline::open_model(model(), {});
  pipeline::write_reordered(source, &profile, nullptr, options, 7, reordered(), false);
  make_artifact(type);
}

ElasticFixture::ElasticFixture(const ModelSpec& spec, const ElasticPlan& plan, DType type) {
  write_tiny_hf_model(spec, model(), 1);
  pipeline::ReorderSection options;
  options.metric = Metric::kRandom;
  options.plan.levels = {1.0};
  options.plan.grid = plan.grid;
  pipeline::write_reordered(pipeline::open_model(model(), {}), nullptr, nullptr, options, 7, reordered(),
                            false);
  save_plan(plan, spec, reordered() / "plan.json");
  make_artifact(type);
}

void ElasticFixture::make_artifact(DType type) const {
  exporter::ExportOptions options;
  options.types = {type};
  pipeline::write_artifact(reordered(), options, nlohmann::ordered_json::object(), artifact(), false);
}

}  // namespace elastify::test
