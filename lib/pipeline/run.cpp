#include "pipeline/run.h"

#include <chrono>

#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/size.h"
#include "base/svg_chart.h"
#include "base/version.h"
#include "pipeline/repairs.h"
#include "pipeline/steps.h"
#include "pipeline/verify.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;

/// Runs steps that are not up to date. A step's key covers its inputs, options and the tool's version; it is
/// written when the step is complete, so an interrupted step runs again.
class Steps {
 public:
  Steps(fs::path output, bool force) : output_(std::move(output)), force_(force) {}

  /// \returns the step's key, an input of the steps after it
  std::string operator()(const std::string& name, const fs::path& product, const ordered_json& inputs,
                         const std::function<void()>& work) const {
    const std::string key =
        sha256_hex(ordered_json{{"step", name}, {"version", kVersion}, {"inputs", inputs}}.dump());
    const fs::path stamp = output_ / ".steps" / name;
    if (!force_ && fs::exists(product) && fs::exists(stamp) && read_text(stamp) == key) {
      log::info("{}: up to date", name);
      return key;
    }
    std::error_code ignored;
    fs::remove(stamp, ignored);
    log::info("{}: {}", name, product.string());
    const auto start = std::chrono::steady_clock::now();
    with_context(name, work);
    log::info("{}: done in {:.1f} s", name,
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    write_text(stamp, key);
    return key;
  }

 private:
  fs::path output_;
  bool force_;
};

/// Perplexity at every level of the plan, and the same for a random order of the same model.
ordered_json evaluate_levels(const fs::path& model_path, const fs::path& tokenizer, const fs::path& reordered,
                             const RunConfig& config) {
  const OpenModel elastic = open_model(reordered, tokenizer);
  const nn::Decoder decoder(elastic.checkpoint, config.compute);
  const TokenBatches batches =
      load_batches(elastic, decoder, config.eval.data, config.eval.seq, config.eval.tokens, std::nullopt);

  ordered_json levels = ordered_json::array();
  for (const Level& level : elastic.plan->levels) {
    const AppliedRepairs repairs = repairs_of(reordered, level.nominal, elastic, decoder, true);
    const auto result =
        eval::perplexity(decoder, batches, &level.widths, config.eval.batch, nullptr, repairs.pointer());
    levels.push_back({{"level", level.nominal},
                      {"repairs", name_of(repairs.parts)},
                      {"perplexity", result.perplexity},
                      {"bits_per_byte", result.bits_per_byte},
                      {"tokens", result.tokens},
                      {"tokens_per_second", result.tokens_per_second}});
  }
  if (!config.eval.baseline) return levels;

  const Checkpoint source = open_model(model_path, tokenizer).checkpoint;
  ReorderSection random;
  random.metric = Metric::kRandom;
  const nn::Decoder baseline(arranged(source, rank(source, nullptr, nullptr, random, config.seed)),
                             config.compute);
  for (size_t i = 0; i < elastic.plan->levels.size(); ++i) {
    const auto result =
        eval::perplexity(baseline, batches, &elastic.plan->levels[i].widths, config.eval.batch);
    levels[i]["perplexity_random_order"] = result.perplexity;
  }
  return levels;
}

ordered_json make_report(const RunConfig& config, const ElasticPlan& plan, const ModelSpec& spec,
                         const fs::path& artifact, const ordered_json& evaluated) {
  const auto folders = artifact_folders(artifact);
  std::vector<std::pair<std::string, ordered_json>> manifests;
  const auto read = [&](const std::string& folder) {
    manifests.emplace_back(folder, ordered_json::parse(read_text(artifact / folder / "manifest.json")));
  };
  for (const std::string& folder : folders) read(folder + "/");
  if (folders.empty()) read("");
  ordered_json report{{"tool", {{"name", "elastify"}, {"version", kVersion}}},
                      {"model", config.model},
                      {"metric", name_of(config.reorder.metric)},
                      {"plan", plan.method},
                      {"type", exporter::to_text(config.export_.types)},
                      {"notes", plan.notes},
                      {"levels", ordered_json::array()}};
  for (size_t i = 0; i < plan.levels.size(); ++i) {
    const Level& level = plan.levels[i];
    ordered_json row{{"level", level.nominal},
                     {"true_ratio", level.decoder_ratio},
                     {"total_ratio", level.total_ratio},
                     {"n_params", n_params(spec, level.widths)}};
    row["files"] = ordered_json::array();
    for (const auto& [folder, manifest] : manifests)
      for (const auto& file : manifest.at("files")) {
        if (file.at("level") != level.nominal) continue;
        ordered_json each{{"name", folder + file.at("name").get<std::string>()},
                          {"type", manifest.at("type")},
                          {"architecture", file.at("architecture")},
                          {"bytes", file.at("bytes")}};
        for (const char* holder : {"packed", "common"})
          if (manifest.contains(holder))
            each[holder] = folder + manifest.at(holder).at("name").get<std::string>();
        if (manifest.contains("common"))
          each["bytes"] =
              file.at("bytes").get<uint64_t>() + manifest.at("common").at("bytes").get<uint64_t>();
        row["files"].push_back(std::move(each));
      }
    for (const auto& [key, value] : evaluated.at(i).items())
      if (key != "level") row[key] = value;
    report["levels"].push_back(row);
  }
  return report;
}

std::string chart(const ordered_json& report) {
  ChartSeries ordered{"reordered by " + report.at("metric").get<std::string>(), {}, {}};
  ChartSeries random{"random order", {}, {}};
  for (const auto& level : report.at("levels")) {
    if (level.at("files").empty()) continue;
    const double megabytes = level.at("files").at(0).at("bytes").get<double>() / 1e6;
    ordered.x.push_back(megabytes);
    ordered.y.push_back(level.at("perplexity"));
    if (!level.contains("perplexity_random_order")) continue;
    random.x.push_back(megabytes);
    random.y.push_back(level.at("perplexity_random_order"));
  }
  Chart picture{fs::path(report.at("model").get<std::string>()).stem().string(),
                "size of the level's file, MB",
                "perplexity on held-out text",
                true,
                {ordered}};
  if (!random.x.empty()) picture.series.push_back(random);
  return to_svg(picture);
}

}  // namespace

ordered_json run(const RunConfig& config, bool force) {
  const fs::path output = config.output, reordered = output / "reordered", artifact = output / "artifact";
  const fs::path profile_file = output / "profile.h5";
  const Steps step(output, force);
  const auto open_source = [&] { return open_model(config.model, config.tokenizer); };

  ordered_json source;
  ModelSpec spec;
  {
    const OpenModel model = open_source();
    spec = model.checkpoint.spec();
    source = identity(model);
  }
  const ordered_json compute = compute_key(config);
  write_text(output / "config.json", to_json(config).dump(2) + "\n");

  const std::string profiled =
      step("profile", profile_file,
           {source, to_json(config.profile), text_hash(config.profile.data), imatrix_hash(config.profile),
            compute, config.seed},
           [&] {
             const OpenModel model = open_source();
             profile::WorkOptions work;
             if (!config.max_ram.empty()) work.max_ram = parse_bytes(config.max_ram);
             work.existing = profile::WorkOptions::Existing::kResumeOrReplace;
             std::error_code ignored;
             if (force) fs::remove_all(unfinished_path(profile_file), ignored);
             write_profile(model, config.compute, config.profile, work, profile_file);
           });
  const std::string arranged =
      step("reorder", reordered,
           {profiled, to_json(config.reorder), latencies_hash(config.reorder), config.seed}, [&] {
             const Profile profile = load_profile(profile_file, spec);
             const Calibration calibration{config.profile, config.compute, config.max_ram};
             write_reordered(open_source(), &profile, moments_of(profile_file, spec), config.reorder,
                             config.seed, reordered, true, &calibration);
           });
  const std::string exported = step("export", artifact, {arranged, to_json(config.export_)}, [&] {
    exporter::ExportOptions options = config.export_;
    if (!config.max_ram.empty()) options.max_ram = parse_bytes(config.max_ram);
    write_artifact(reordered, options, to_json(config), artifact, true);
  });
  step("verify", output / "verify.json", {exported, compute}, [&] {
    ordered_json findings = ordered_json::array();
    for (const fs::path& made : {reordered, artifact})
      for (const Finding& finding : verify(made, config.model, {}, config.compute)) {
        if (!finding.holds)
          throw Error(fmt::format("{}: refuted: {}: {}", made.string(), finding.claim, finding.detail));
        log::info("{}: {}: {}", made.filename().string(), finding.claim, finding.detail);
        findings.push_back({{"path", made.string()}, {"claim", finding.claim}, {"detail", finding.detail}});
      }
    write_text(output / "verify.json", findings.dump(2) + "\n");
  });
  step("eval", output / "eval.json", {arranged, to_json(config.eval), text_hash(config.eval.data), compute},
       [&] {
         write_text(output / "eval.json",
                    evaluate_levels(config.model, config.tokenizer, reordered, config).dump(2) + "\n");
       });

  const ordered_json report = make_report(config, load_plan(reordered / "plan.json", spec), spec, artifact,
                                          ordered_json::parse(read_text(output / "eval.json")));
  write_text(output / "report.json", report.dump(2) + "\n");
  write_text(output / "report.svg", chart(report));
  return report;
}

std::string table(const ordered_json& report) {
  const bool baseline = report.at("levels").at(0).contains("perplexity_random_order");
  std::string text = fmt::format("{:>6} {:>10} {:>10} {:>12} {:>10} {:>11} {:>12} {:>9}  {}\n", "level",
                                 "true ratio", "all ratio", "parameters", "file MB", "perplexity",
                                 baseline ? "random order" : "", "tokens/s", "file");
  for (const auto& level : report.at("levels")) {
    const ordered_json file = level.at("files").empty() ? ordered_json() : level.at("files").at(0);
    std::string name = "-";
    if (!file.is_null()) {
      name = file.at("name").get<std::string>();
      if (file.contains("packed")) name += " in " + file.at("packed").get<std::string>();
      if (file.contains("common")) name += " and " + file.at("common").get<std::string>();
    }
    text +=
        fmt::format("{:>6.2f} {:>10.4f} {:>10.4f} {:>12} {:>10} {:>11.2f} {:>12} {:>9.0f}  {}\n",
                    level.at("level").get<double>(), level.at("true_ratio").get<double>(),
                    level.at("total_ratio").get<double>(), level.at("n_params").get<int64_t>(),
                    file.is_null() ? "-" : fmt::format("{:.1f}", file.at("bytes").get<double>() / 1e6),
                    level.at("perplexity").get<double>(),
                    baseline ? fmt::format("{:.2f}", level.at("perplexity_random_order").get<double>()) : "",
                    level.at("tokens_per_second").get<double>(), name);
  }
  return text;
}

}  // namespace elastify::pipeline
