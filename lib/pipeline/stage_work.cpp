#include "pipeline/stage_work.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "eval/evaluate.h"
#include "pipeline/measure_profile.h"
#include "pipeline/order.h"
#include "pipeline/reorder_model.h"
#include "pipeline/repairs.h"
#include "pipeline/stages.h"
#include "pipeline/verify.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;

void profile_stage(const RunContext& run) {
  const fs::path output = run.product("profile");
  profile::WorkOptions work;
  work.max_ram = run.config.max_ram;
  work.save_every = run.config.profile.save_every;
  using Existing = profile::WorkOptions::Existing;
  work.existing = run.force ? Existing::kReplace : Existing::kResumeOrReplace;
  write_profile(run.open_source(), run.config.compute, run.config.profile, work, output);
}

void reorder_stage(const RunContext& run) {
  const fs::path measured = run.product("profile");
  const Profile profile = load_profile(measured, run.spec);
  const Calibration calibration = calibration_of(run.config);
  write_reordered(run.open_source(), {&profile, moments_of(measured, run.spec), &calibration}, run.config,
                  run.product("reorder"), true);
}

void export_stage(const RunContext& run) {
  ordered_json configuration = to_json(run.config);
  configuration.erase("output");  // the same artifact has the same bytes wherever it is written
  write_artifact(run.product("reorder"), run.config.export_, configuration, run.product("export"), true);
}

void verify_stage(const RunContext& run) {
  ordered_json findings = ordered_json::array();
  for (const fs::path& made : {run.product("reorder"), run.product("export")})
    for (const Finding& finding : verify(made, run.config.model, run.config.verify, run.config.compute)) {
      if (!finding.holds)
        throw Error(fmt::format("{}: refuted: {}: {}", made.string(), finding.claim, finding.detail));
      log::info("{}: {}: {}", made.filename().string(), finding.claim, finding.detail);
      findings.push_back({{"path", made.string()}, {"claim", finding.claim}, {"detail", finding.detail}});
    }
  write_text(run.product("verify"), findings.dump(2) + "\n");
}

/// Adds the perplexities of a random order of the source model, without repairs.
void add_baseline(const RunContext& run, const ElasticPlan& plan, const TokenBatches& batches,
                  ordered_json& levels) {
  require_resident(run.spec, run.config.eval.text, run.config.max_ram, "eval.baseline");
  const Checkpoint source = run.open_source().checkpoint;
  const Permutation order = rank(source, nullptr, nullptr, Metric::kRandom, run.config.seed);
  const nn::Decoder baseline(arranged(source, order), run.config.compute);
  for (size_t i = 0; i < plan.levels.size(); ++i) {
    const auto result =
        eval::perplexity(baseline, batches, &plan.levels[i].widths, run.config.eval.text.batch);
    levels[i]["perplexity_random_order"] = result.perplexity;
  }
}

/// Measures the perplexity of every level of the plan.
void eval_stage(const RunContext& run) {
  const RunConfig& config = run.config;
  const fs::path reordered = run.product("reorder");
  const OpenModel elastic = open_model(reordered, config.tokenizer);
  const nn::Decoder decoder(elastic.checkpoint,
                            placed(run.spec, config.compute, config.eval.text, config.max_ram));
  const TokenBatches batches = load_batches(elastic, decoder, config.eval.text, false);

  ordered_json levels = ordered_json::array();
  for (const Level& level : elastic.plan->levels) {
    const AppliedRepairs repairs = repairs_of(reordered, level.nominal, elastic, decoder, true);
    const auto result =
        eval::perplexity(decoder, batches, &level.widths, config.eval.text.batch, nullptr, repairs.pointer());
    with_context(fmt::format("level {}", level.nominal), [&] { eval::require_finite(result); });
    levels.push_back({{"level", level.nominal},
                      {"repairs", name_of(repairs.parts)},
                      {"perplexity", result.perplexity},
                      {"bits_per_byte", result.bits_per_byte},
                      {"nll", result.nll},
                      {"tokens", result.tokens},
                      {"tokens_per_second", result.tokens_per_second}});
  }
  if (config.eval.baseline) add_baseline(run, *elastic.plan, batches, levels);
  write_text(run.product("eval"), levels.dump(2) + "\n");
}

struct NamedWork {
  std::string_view stage;
  StageWork work;
};
constexpr NamedWork kWork[] = {{"profile", profile_stage},
                               {"reorder", reorder_stage},
                               {"export", export_stage},
                               {"verify", verify_stage},
                               {"eval", eval_stage}};

}  // namespace

fs::path RunContext::product(std::string_view stage) const {
  return fs::path(config.output) / stage_named(stage).product;
}

StageWork work_of(std::string_view stage) {
  for (const NamedWork& known : kWork)
    if (known.stage == stage) return known.work;
  fail("stage '{}' has no work", stage);
}

}  // namespace elastify::pipeline
