#include "pipeline/run.h"

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include <fmt/ranges.h>

#include "base/error.h"
#include "base/log.h"
#include "base/output_lock.h"
#include "base/version.h"
#include "model/manifest.h"
#include "pipeline/fit_to_model.h"
#include "pipeline/keys.h"
#include "pipeline/measure_profile.h"
#include "pipeline/outputs.h"
#include "pipeline/stage_work.h"
#include "pipeline/stages.h"
#include "report/run_view.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;

/// The folder of the stages' keys, by which a run knows its directory again.
constexpr const char* kSteps = ".steps";

/// Layer removal takes long, and only some plans go by it.
void skip_needless_removal(RunConfig& config) {
  if (plan::facts_of(config.reorder.plan.method).needs_removal) return;
  if (!config.sources.emplace("profile.removal_tokens", "follows from reorder.plan").second) return;
  config.profile.removal_tokens = 0;
}

/// The files of a product with their sizes and times of change, one a line. Repairs are left out: users put
/// adapters that they trained in their place.
std::string inventory(const fs::path& product) {
  const auto line = [&product](const fs::path& file) {
    return fmt::format("{} {} {}\n", file.lexically_relative(product.parent_path()).string(),
                       fs::file_size(file), fs::last_write_time(file).time_since_epoch().count());
  };
  if (!fs::is_directory(product)) return fs::exists(product) ? line(product) : "";
  std::set<std::string> lines;
  for (auto entry = fs::recursive_directory_iterator(product); entry != fs::recursive_directory_iterator();
       ++entry) {
    if (entry->is_directory() && entry->path().filename() == "repairs") entry.disable_recursion_pending();
    if (entry->is_regular_file()) lines.insert(line(entry->path()));
  }
  return fmt::format("{}", fmt::join(lines, ""));
}

/// Runs a stage unless its product was made under this key and its files have not changed since. Both are
/// written down when the stage is complete, so an interrupted stage runs again.
void run_stage(const Stage& stage, const std::string& key, const RunContext& run) {
  const fs::path product = run.product(stage.name);
  const fs::path stamp = fs::path(run.config.output) / kSteps / stage.name;
  const auto state = [&] { return fmt::format("{}\n{}", key, inventory(product)); };
  if (!run.force && fs::exists(stamp) && read_text(stamp) == state()) {
    log::info("{}: up to date", stage.name);
    return;
  }
  std::error_code ignored;
  fs::remove(stamp, ignored);
  log::info("{}: {}", stage.name, product.string());
  const auto start = std::chrono::steady_clock::now();
  with_context(stage.name, [&] { work_of(stage.name)(run); });
  log::info("{}: done in {:.1f} s", stage.name,
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  write_text(stamp, state());
}

/// \throws UsageError  if the run would replace an input, or something that elastify did not write
void require_own_products(const RunConfig& config) {
  std::vector<fs::path> names{"config.yaml", "report.json", "report.svg"};
  for (const Stage& stage : stages()) names.emplace_back(stage.product);
  require_own_directory(config.output, kSteps, names, inputs_of(config));
}

/// A level's file, for the report.
/// \param folder  prefix for the manifest's names
ordered_json file_json(const ListedModel& model, const std::string& folder, const Manifest& manifest) {
  ordered_json json{{"name", folder + model.name},
                    {"type", manifest.type},
                    {"architecture", model.architecture},
                    {"bytes", model.bytes}};
  if (manifest.packed) json["packed"] = folder + manifest.packed->name;
  if (manifest.common) {
    json["common"] = folder + manifest.common->name;
    json["bytes"] = model.bytes + manifest.common->bytes;
  }
  return json;
}

ordered_json make_report(const RunContext& run) {
  const RunConfig& config = run.config;
  const ElasticPlan plan = load_plan(run.product("reorder") / "plan.json", run.spec);
  const auto evaluated = ordered_json::parse(read_text(run.product("eval")));
  const auto manifests = load_manifests(run.product("export"));
  ordered_json report{{"tool", {{"name", "elastify"}, {"version", kVersion}}},
                      {"model", config.model},
                      {"preset", config.preset},
                      {"metric", name_of(config.reorder.metric)},
                      {"plan", plan.method},
                      {"compensate", name_of(config.reorder.repair.compensation)},
                      {"type", exporter::to_text(config.export_.types)},
                      {"notes", plan.notes},
                      {"levels", ordered_json::array()}};
  for (size_t i = 0; i < plan.levels.size(); ++i) {
    const Level& level = plan.levels[i];
    ordered_json row{{"level", level.nominal},
                     {"true_ratio", level.decoder_ratio},
                     {"total_ratio", level.total_ratio},
                     {"n_params", n_params(run.spec, level.widths)}};
    row["files"] = ordered_json::array();
    for (const auto& [folder, manifest] : manifests)
      if (const ListedModel* model = manifest.model_at(level.nominal))
        row["files"].push_back(file_json(*model, folder, manifest));
    for (const auto& [key, value] : evaluated.at(i).items())
      if (key != "level") row[key] = value;
    report["levels"].push_back(row);
  }
  return report;
}

}  // namespace

ordered_json run(RunConfig config, bool force) {
  const fs::path output = config.output;
  const OutputLock lock(output);
  ordered_json source;
  ModelSpec spec;
  {
    const OpenModel model = open_model(config.model, config.tokenizer);
    spec = model.checkpoint.spec();
    source = identity(model);
  }
  fit_to_model(config, spec);
  fit_batch(config, spec);
  skip_needless_removal(config);
  require_own_products(config);
  fs::create_directories(output / kSteps);
  write_text(output / "config.yaml", to_yaml(config));
  const RunContext context{config, spec, force};
  std::map<std::string_view, std::string> keys;
  for (const Stage& stage : stages()) {
    ordered_json inputs{{"options", key_of(config, stage.results)}};
    if (stage.needs.empty()) inputs["source"] = source;
    for (const std::string_view needed : stage.needs) inputs[std::string(needed)] = keys.at(needed);
    keys[stage.name] = digest_of(stage.name, inputs);
    run_stage(stage, keys[stage.name], context);
  }
  const ordered_json report = make_report(context);
  write_text(output / "report.json", report.dump(2) + "\n");
  write_text(output / "report.svg", report::run_chart(report));
  return report;
}

}  // namespace elastify::pipeline
