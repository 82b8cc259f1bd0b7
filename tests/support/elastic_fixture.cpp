#include "support/elastic_fixture.h"

#include <nlohmann/json.hpp>

#include "pipeline/reorder_model.h"
#include "support/tiny_model.h"

namespace elastify::test {

ElasticFixture::ElasticFixture(const ModelSpec& spec, DType type, plan::Method method, uint64_t seed) {
  write_tiny_hf_model(spec, model(), seed);
  pipeline::RunConfig config;
  config.reorder.metric = Metric::kRandom;
  config.reorder.plan.method = method;
  config.reorder.plan.levels = {0.6, 0.8, 1.0};
  config.reorder.plan.anchor_share = 0.5;
  config.reorder.plan.grid = is_float(type) ? 8 : 32;
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    profile.removal_loss.push_back(static_cast<double>(layer));
  const pipeline::OpenModel source = pipeline::open_model(model(), {});
  config.seed = 7;
  pipeline::write_reordered(source, {&profile}, config, reordered(), false);
  make_artifact(type);
}

ElasticFixture::ElasticFixture(const ModelSpec& spec, const ElasticPlan& plan, DType type) {
  write_tiny_hf_model(spec, model(), 1);
  pipeline::RunConfig config;
  config.reorder.metric = Metric::kRandom;
  config.reorder.plan.levels = {1.0};
  config.reorder.plan.grid = plan.grid;
  config.seed = 7;
  pipeline::write_reordered(pipeline::open_model(model(), {}), {}, config, reordered(), false);
  save_plan(plan, spec, reordered() / "plan.json");
  make_artifact(type);
}

void ElasticFixture::make_artifact(DType type) const {
  exporter::ExportOptions options;
  options.types = {type};
  pipeline::write_artifact(reordered(), options, nlohmann::ordered_json::object(), artifact(), false);
}

}  // namespace elastify::test
