#include "plan/explain.h"

#include <doctest/doctest.h>

#include "support/tiny_model.h"

namespace elastify {

TEST_CASE("explain: it gives kept shares, prices of the last steps, wide layers and implicit anchors") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 3, .n_kv_heads = 4, .d_ff = 64});
  plan::CostCurves curves{.cost = {}, .source = "a test"};
  for (const AxisSpace& space : spec.spaces) {
    auto& cost = curves.cost.emplace_back();
    const double per_unit = space.layer == 0 ? 100 : space.layer;  // linear, and far higher for layer 0
    for (int64_t k = 0; k <= space.n_units; ++k)
      cost.push_back(per_unit *
                     static_cast<double>((space.n_units - k) * params_per_unit(spec, spec.mlp_space(0))));
  }
  Profile profile;
  profile.removal_loss = {3, 2, 1};
  plan::PlanOptions options;
  options.method = plan::Method::kDp;
  options.grid = 8;
  options.levels = {0.4, 0.6, 0.8};
  const ElasticPlan plan = plan::make_plan(spec, nullptr, options, &curves);
  const report::PlanExplanation explained = plan::explain(spec, plan, &profile, &curves);
  CHECK(explained.levels == std::vector<double>{0.4, 0.6, 0.8});
  CHECK(explained.curves == "a test");
  CHECK(explained.removal_loss == profile.removal_loss);
  CHECK(explained.block_influence.empty());
  REQUIRE(explained.layers.size() == 3);
  CHECK(explained.anchors == std::vector<int64_t>{0});
  for (size_t level = 0; level < 3; ++level) {
    double mean = 0;
    for (int64_t layer = 0; layer < 3; ++layer) {
      const report::LayerExplanation& of = explained.layers[static_cast<size_t>(layer)];
      const Widths& widths = plan.levels[level].widths;
      CHECK(of.mlp.kept[level] * 64 == doctest::Approx(widths[spec.mlp_space(layer)]));
      CHECK(of.attention.kept[level] * 4 == doctest::Approx(widths[spec.attention_space(layer)]));
      CHECK(of.mlp.price[level] == doctest::Approx(1e6 * (layer == 0 ? 100 : static_cast<double>(layer))));
      mean += of.kept[level] / 3;
    }
    CHECK(explained.mean_kept[level] == doctest::Approx(mean));
    REQUIRE(!explained.wide[level].empty());
    CHECK(explained.wide[level][0] == 0);
  }
  // Without a profile and curves there are the widths alone.
  const report::PlanExplanation bare = plan::explain(spec, plan, nullptr, nullptr);
  CHECK(bare.layers[0].mlp.price.empty());
  CHECK(bare.removal_loss.empty());
  CHECK(bare.anchors == explained.anchors);
}

TEST_CASE("explain: a uniform plan has no anchors, and without a level of 0.5 or more none are named") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 3, .n_kv_heads = 4, .d_ff = 64});
  plan::PlanOptions options;
  options.grid = 8;
  options.levels = {0.4, 0.6};
  const report::PlanExplanation explained =
      plan::explain(spec, plan::make_plan(spec, nullptr, options), nullptr, nullptr);
  CHECK(explained.anchors.empty());
  for (const auto& wide : explained.wide) CHECK(wide.empty());
  options.levels = {0.4};
  CHECK(plan::explain(spec, plan::make_plan(spec, nullptr, options), nullptr, nullptr).anchors.empty());
}

}  // namespace elastify
