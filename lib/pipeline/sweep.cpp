#include "pipeline/sweep.h"

#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/version.h"
#include "pipeline/repairs.h"
#include "pipeline/steps.h"
#include "pipeline/sweep_report.h"
#include "pipeline/widths.h"
#include "recover/closed_form.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Points whose importances come out of the same passes over the same tokens.
struct ProfileGroup {
  std::string key;
  profile::ProfileOptions options;  ///< metrics: what the points need; removal_tokens: 0 if none plans by it
  std::vector<size_t> points;
};

std::vector<ProfileGroup> group_by_profile(const SweepConfig& config, const ordered_json& source) {
  std::vector<ProfileGroup> groups;
  std::map<std::vector<std::string>, std::string> texts;
  for (size_t i = 0; i < config.points.size(); ++i) {
    const RunConfig& point = config.points[i].config;
    ordered_json options = to_json(point.profile);
    for (const char* varied : {"metrics", "second_moments"}) options.erase(varied);  // what is kept may grow
    std::string& text = texts[point.profile.data];
    if (text.empty()) text = text_hash(point.profile.data);
    const ordered_json inputs{
        source, options, point.seed, text, imatrix_hash(point.profile), compute_key(point)};
    const std::string key = sha256_hex(ordered_json{{"version", kVersion}, {"inputs", inputs}}.dump());
    auto group =
        std::find_if(groups.begin(), groups.end(), [&](const auto& known) { return known.key == key; });
    if (group == groups.end()) {
      group = groups.insert(groups.end(), {key, point.profile, {}});
      group->options.metrics.clear();
      group->options.removal_tokens = 0;
    }
    group->points.push_back(i);
    auto& metrics = group->options.metrics;
    if (std::find(metrics.begin(), metrics.end(), point.reorder.metric) == metrics.end())
      metrics.push_back(point.reorder.metric);
    group->options.second_moments |= point.profile.second_moments;
    if (plan::goes_by_removal_loss(point.reorder.plan.method))
      group->options.removal_tokens = point.profile.removal_tokens;
  }
  return groups;
}

/// The group's profile: what is kept of it, and the rest measured in one go.
Profile obtain_profile(const OpenModel& model, const nn::DecoderOptions& compute, const ProfileGroup& group,
                       const fs::path& file) {
  const ModelSpec& spec = model.checkpoint.spec();
  profile::ProfileOptions missing = group.options;
  Profile kept;
  const bool exists = fs::exists(file);
  if (exists) {
    kept = load_profile(file, spec);
    const bool has_moments = has_second_moments(file);
    std::erase_if(missing.metrics, [&](Metric metric) {
      return needs_second_moments(metric) ? has_moments : kept.importance.count(metric) > 0;
    });
    if (!kept.removal_loss.empty()) missing.removal_tokens = 0;
    if (has_moments) missing.second_moments = false;
    if (missing.metrics.empty() && missing.removal_tokens == 0 && !missing.second_moments) return kept;
  }
  std::vector<std::string_view> names;
  for (const Metric metric : missing.metrics) names.push_back(name_of(metric));
  if (missing.removal_tokens > 0) names.emplace_back("removal of layers");
  log::info("profile for {}: {}",
            group.points.size() == 1 ? "one point" : fmt::format("{} points", group.points.size()),
            fmt::join(names, ", "));
  Measured measured = measure_profile(model, compute, missing);
  log::info("profile: done in {:.1f} s", measured.seconds);
  Profile profile = std::move(measured.profile);
  if (exists) {
    profile.importance.merge(kept.importance);
    if (profile.removal_loss.empty()) profile.removal_loss = std::move(kept.removal_loss);
    if (profile.base_loss == 0) profile.base_loss = kept.base_loss;
    if (profile.inputs.empty()) {
      profile.inputs = std::move(kept.inputs);
      profile.block_influence = std::move(kept.block_influence);
      profile.attention_influence = std::move(kept.attention_influence);
      profile.mlp_influence = std::move(kept.mlp_influence);
    }
    if (!measured.moments) measured.moments = moments_of(file, spec);
  }
  save_profile(profile, spec, file, measured.moments);
  return profile;
}

/// What results of a task go under.
std::string task_name(const std::string& file) {
  return fs::path(file).stem().string();
}

void require_distinct_tasks(const EvalOptions& options) {
  std::map<std::string, std::string> files;
  for (const std::string& file : options.tasks)
    if (const auto [known, is_new] = files.emplace(task_name(file), file); !is_new)
      throw UsageError(
          fmt::format("eval.tasks: {} and {} are both called '{}'", known->second, file, known->first),
          "rename one of the files");
}

/// What a model is measured by: a text and multiple-choice items.
struct Examination {
  TokenBatches batches;
  std::unique_ptr<Tokenizer> tokenizer;  ///< null without tasks
  std::vector<std::pair<std::string, std::vector<TaskItem>>> tasks;

  Examination(const OpenModel& model, const EvalOptions& options) {
    if (options.tasks.empty()) return;
    if (!model.vocabulary)
      throw UsageError("eval.tasks: the model carries no tokenizer", "name one under `tokenizer`");
    tokenizer = make_tokenizer(*model.vocabulary);
    for (const std::string& file : options.tasks) {
      std::vector<TaskItem> items = load_task(file);
      if (options.items > 0 && static_cast<int64_t>(items.size()) > options.items)
        items.resize(static_cast<size_t>(options.items));
      tasks.emplace_back(task_name(file), std::move(items));
    }
  }
};

struct Evaluation {
  eval::PerplexityResult text;
  ordered_json tasks = ordered_json::object();  ///< accuracies by task
};

/// Evaluations by the content of what goes into them, in memory and on disk.
class Evaluations {
 public:
  Evaluations(fs::path directory, ordered_json common)
      : directory_(std::move(directory)), common_(std::move(common)) {}

  /// \param order   digest of the permutation; of no meaning at full width
  /// \param repair  what a level's repair depends on besides; empty if there is none
  std::string key(const std::string& order, const std::string& repair, const Widths& widths,
                  const ModelSpec& spec) const {
    const bool full = widths == full_widths(spec);
    ordered_json content{
        {"version", kVersion}, {"common", common_}, {"order", full ? "" : order}, {"widths", widths}};
    if (!full && !repair.empty()) content["repair"] = repair;
    return sha256_hex(content.dump());
  }
  /// Null if it has to be evaluated.
  const Evaluation* find(const std::string& key) {
    if (const auto known = known_.find(key); known != known_.end()) return &known->second;
    if (!fs::exists(file(key))) return nullptr;
    const auto json = ordered_json::parse(read_text(file(key)), nullptr, false);
    for (const char* name : {"nll", "bits_per_byte", "tokens", "tokens_per_second"})
      if (!json.is_object() || !json.contains(name)) return nullptr;
    Evaluation evaluation;
    evaluation.tasks = json.value("tasks", ordered_json::object());
    eval::PerplexityResult& result = evaluation.text;
    result.nll = number_of(json.at("nll"));
    result.perplexity = std::exp(result.nll);
    result.bits_per_byte = number_of(json.at("bits_per_byte"));
    result.tokens = json.at("tokens").get<int64_t>();
    result.tokens_per_second = number_of(json.at("tokens_per_second"));
    return &known_.emplace(key, std::move(evaluation)).first->second;
  }
  void keep(const std::string& key, const Evaluation& evaluation, const std::string& point, double level) {
    const eval::PerplexityResult& result = evaluation.text;
    ordered_json json{{"point", point},          {"level", level},
                      {"nll", result.nll},       {"bits_per_byte", result.bits_per_byte},
                      {"tokens", result.tokens}, {"tokens_per_second", result.tokens_per_second}};
    if (!evaluation.tasks.empty()) json["tasks"] = evaluation.tasks;
    write_text(file(key), json.dump(2) + "\n");
    known_[key] = evaluation;
  }

 private:
  fs::path file(const std::string& key) const { return directory_ / (key + ".json"); }

  fs::path directory_;
  ordered_json common_;
  std::map<std::string, Evaluation> known_;
};

/// A point, ready to be evaluated.
struct Candidate {
  std::string name, order;  ///< order: digest of its permutation
  ElasticPlan plan;
  const RunConfig* config = nullptr;
  std::vector<std::string> keys;  ///< of its evaluations, [levels]
};

bool is_repaired(const RunConfig& config) {
  return config.reorder.repair.compensation != Compensation::kNone;
}

/// Repairs of these levels.
std::map<size_t, nn::LevelRepair> fit_repairs(const OpenModel& model, const nn::Decoder& decoder,
                                              const Candidate& candidate, const std::set<size_t>& levels) {
  std::vector<Widths> widths;
  for (const size_t i : levels) widths.push_back(candidate.plan.levels[i].widths);
  const RunConfig& config = *candidate.config;
  const auto batches =
      fitting_batches(model, decoder, fitting_text(config.profile, config.reorder), config.seed);
  auto fitted = recover::fit_levels(decoder, batches, widths, config.reorder.repair);
  std::map<size_t, nn::LevelRepair> repairs;
  for (const size_t i : levels) repairs[i] = std::move(fitted[repairs.size()]);
  return repairs;
}

/// Evaluates what is not kept yet.
/// \param orders  permutations by digest
void evaluate(const OpenModel& model, const RunConfig& config, const std::vector<Candidate>& candidates,
              const std::map<std::string, Permutation>& orders, Evaluations& evaluations) {
  const ModelSpec& spec = model.checkpoint.spec();
  // Work is counted in parameters times passes over the text, which is about what the time goes with.
  std::map<std::string, int64_t> missing;
  double work_left = 0;
  for (const Candidate& candidate : candidates)
    for (size_t i = 0; i < candidate.keys.size(); ++i)
      if (evaluations.find(candidate.keys[i]) == nullptr) {
        const int64_t work = n_params(spec, candidate.plan.levels[i].widths);
        if (missing.emplace(candidate.keys[i], work).second) work_left += static_cast<double>(work);
      }
  log::info("{} points, {} evaluations to do", candidates.size(), missing.size());
  if (missing.empty()) return;

  const auto start = Clock::now();
  double work_done = 0;
  Examination examination(model, config.eval);
  const auto measure = [&](const nn::Decoder& decoder, const Candidate& candidate, size_t i,
                           const nn::LevelRepair* repairs, Progress* progress) {
    const Level& level = candidate.plan.levels[i];
    Evaluation result{
        eval::perplexity(decoder, examination.batches, &level.widths, config.eval.batch, progress, repairs)};
    for (const auto& [name, items] : examination.tasks) {
      const auto task = eval::multiple_choice(decoder, *examination.tokenizer, items, &level.widths, repairs);
      result.tasks[name] = {
          {"accuracy", task.accuracy}, {"accuracy_norm", task.accuracy_norm}, {"items", task.items}};
    }
    evaluations.keep(candidate.keys[i], result, candidate.name, level.nominal);
    const auto work = static_cast<double>(missing.at(candidate.keys[i]));
    work_done += work;
    work_left -= work;
    return result;
  };
  {
    const nn::Decoder decoder(model.checkpoint, config.compute);
    examination.batches =
        load_batches(model, decoder, config.eval.data, config.eval.seq, config.eval.tokens, std::nullopt);
    const Candidate& any = candidates.front();
    if (missing.count(any.keys.back()) > 0) {
      const auto result = measure(decoder, any, any.keys.size() - 1, nullptr, nullptr);
      log::info("full model: perplexity {:.4f}", result.text.perplexity);
    }
  }
  std::optional<nn::Decoder> decoder;
  std::string loaded;
  for (size_t p = 0; p < candidates.size(); ++p) {
    const Candidate& candidate = candidates[p];
    std::set<size_t> levels;
    for (size_t i = 0; i < candidate.keys.size(); ++i)
      if (evaluations.find(candidate.keys[i]) == nullptr) levels.insert(i);
    if (levels.empty()) continue;
    const std::string label = fmt::format("point {}/{} ({})", p + 1, candidates.size(), candidate.name);
    const auto began = Clock::now();
    if (loaded != candidate.order) {
      decoder.reset();  // never two models in memory
      decoder.emplace(arranged(model.checkpoint, orders.at(candidate.order)), config.compute);
      loaded = candidate.order;
    }
    std::set<size_t> narrow;
    for (const size_t i : levels)
      if (candidate.plan.levels[i].widths != full_widths(spec)) narrow.insert(i);
    std::map<size_t, nn::LevelRepair> repairs;
    if (is_repaired(*candidate.config))
      with_context(candidate.name, [&] { repairs = fit_repairs(model, *decoder, candidate, narrow); });
    {
      Progress progress(label, static_cast<int64_t>(levels.size()) * examination.batches.n_tokens(),
                        "tokens");
      for (const size_t i : levels)
        if (evaluations.find(candidate.keys[i]) == nullptr)
          with_context(fmt::format("{}, level {}", candidate.name, candidate.plan.levels[i].nominal), [&] {
            const auto repair = repairs.find(i);
            measure(*decoder, candidate, i, repair == repairs.end() ? nullptr : &repair->second, &progress);
          });
    }
    const std::string left =
        work_left > 0 && work_done > 0
            ? fmt::format(", about {} left in all", clock_text(seconds_since(start) / work_done * work_left))
            : "";
    log::info("{}: done in {:.1f} s{}", label, seconds_since(began), left);
  }
}

/// The point's plan. One that is measured is kept by all that it depends on.
/// \param source  the model's identity()
ElasticPlan plan_point(const OpenModel& model, const ordered_json& source, const Profile& profile,
                       const MomentSource& moments, const Permutation& order, const RunConfig& point,
                       const fs::path& kept) {
  const Calibration calibration{point.profile, point.compute, point.max_ram};
  const auto make = [&] {
    return plan_widths(model, &profile, moments, order, point.reorder, point.seed, &calibration).plan;
  };
  if (!measures_losses(point.reorder.plan.method)) return make();
  ordered_json options = to_json(point.reorder);
  for (const char* later : {"storage", "compensate", "fit_tokens", "rank", "spread_ranks", "ridge",
                            "sequential", "whole_stream", "weigh_tokens"})
    options.erase(later);
  const ordered_json content{{"version", kVersion},
                             {"model", source},
                             {"order", digest(order)},
                             {"options", options},
                             {"latencies", latencies_hash(point.reorder)},
                             {"text", text_hash(point.profile.data)},
                             {"profile", to_json(point.profile)},
                             {"corpus", profile.corpus_digest},
                             {"removal_loss", profile.removal_loss},
                             {"seed", point.seed},
                             {"compute", compute_key(point)}};
  const fs::path file = kept / fmt::format("plan-{}.json", sha256_hex(content.dump()));
  const ModelSpec& spec = model.checkpoint.spec();
  if (!fs::exists(file)) save_plan(make(), spec, file);
  return load_plan(file, spec);
}

ordered_json make_report(const SweepConfig& config, const std::vector<Candidate>& candidates,
                         const ModelSpec& spec, Evaluations& evaluations) {
  const auto values_of = [](const eval::PerplexityResult& result) {
    return ordered_json{
        {"perplexity", result.perplexity}, {"bits_per_byte", result.bits_per_byte}, {"nll", result.nll}};
  };
  const Evaluation& full_evaluation = *evaluations.find(candidates.front().keys.back());
  const eval::PerplexityResult& full = full_evaluation.text;
  ordered_json report{{"tool", {{"name", "elastify"}, {"version", kVersion}}},
                      {"model", config.base.model},
                      {"tokens", full.tokens},
                      {"axes", ordered_json::array()},
                      {"full", values_of(full)},
                      {"tasks", full_evaluation.tasks},
                      {"points", ordered_json::array()}};
  const ordered_json configuration = to_json(config);
  for (const GridAxis& axis : config.grid)
    report["axes"].push_back(
        {{"key", axis.key},
         {"values", axis.key == kRows ? ordered_json(axis.values) : configuration.at("grid").at(axis.key)}});
  for (size_t p = 0; p < candidates.size(); ++p) {
    const Candidate& candidate = candidates[p];
    ordered_json point{{"name", candidate.name},
                       {"options", ordered_json::object()},
                       {"notes", candidate.plan.notes},
                       {"levels", ordered_json::array()}};
    for (size_t i = 0; i < config.grid.size(); ++i)
      point["options"][config.grid[i].key] = config.grid[i].key == kRows
                                                 ? ordered_json(config.points[p].values[i])
                                                 : value_of(config.points[p].config, config.grid[i].key);
    for (size_t i = 0; i < candidate.plan.levels.size(); ++i) {
      const Level& level = candidate.plan.levels[i];
      const Evaluation& evaluation = *evaluations.find(candidate.keys[i]);
      ordered_json row{{"level", level.nominal},
                       {"true_ratio", level.decoder_ratio},
                       {"total_ratio", level.total_ratio},
                       {"n_params", n_params(spec, level.widths)}};
      row.update(values_of(evaluation.text));
      row["excess_nll"] = evaluation.text.nll - full.nll;
      if (!evaluation.tasks.empty()) row["tasks"] = evaluation.tasks;
      point["levels"].push_back(row);
    }
    report["points"].push_back(point);
  }
  report["configuration"] = configuration;
  return report;
}

}  // namespace

ordered_json sweep(const SweepConfig& config, bool force) {
  const RunConfig& base = config.base;
  const fs::path output = base.output, profiles = output / ".profiles", kept = output / ".points";
  const OpenModel model = open_model(base.model, base.tokenizer);
  const ModelSpec& spec = model.checkpoint.spec();
  require_distinct_tasks(base.eval);
  std::vector<Candidate> candidates(config.points.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    candidates[i].name = point_name(config.points[i], config.grid);
    // A level that cannot be met is said now rather than after the profile.
    const plan::PlanOptions& options = config.points[i].config.reorder.plan;
    if (options.method == plan::Method::kUniform)
      with_context(candidates[i].name, [&] { plan::make_plan(spec, nullptr, options); });
  }
  if (force) {
    fs::remove_all(profiles);
    fs::remove_all(kept);
  }
  write_text(output / "config.json", to_json(config).dump(2) + "\n");

  const ordered_json source = identity(model);
  ordered_json eval_options = to_json(base.eval);
  for (const char* name : {"data", "baseline"}) eval_options.erase(name);
  if (!base.eval.tasks.empty()) {
    std::vector<std::string> names;
    for (const std::string& file : base.eval.tasks) names.push_back(task_name(file));
    eval_options["tasks"] = {names, text_hash(base.eval.tasks)};
  }
  Evaluations evaluations(kept, {source, eval_options, text_hash(base.eval.data), compute_key(base)});

  std::map<std::string, Permutation> orders;
  std::set<std::string> notes;
  for (const ProfileGroup& group : group_by_profile(config, source)) {
    const Profile profile = obtain_profile(model, base.compute, group, profiles / (group.key + ".h5"));
    const MomentSource moments = moments_of(profiles / (group.key + ".h5"), spec);
    for (const size_t i : group.points) {
      const RunConfig& point = config.points[i].config;
      Candidate& candidate = candidates[i];
      with_context(candidate.name, [&] {
        Permutation order =
            rank(model.checkpoint, &profile, moments, point.reorder, point.seed, base.compute.device);
        candidate.plan = plan_point(model, source, profile, moments, order, point, kept);
        candidate.order = digest(order);
        candidate.config = &point;
        orders.emplace(candidate.order, std::move(order));
      });
      std::string repair;
      if (is_repaired(point)) {
        ordered_json options = to_json(point.reorder);
        if (!point.reorder.repair.spread_ranks) options.erase("spread_ranks");
        repair = sha256_hex(
            ordered_json{to_json(point.profile), text_hash(point.profile.data), point.seed, options}.dump());
      }
      for (const Level& level : candidate.plan.levels)
        candidate.keys.push_back(evaluations.key(candidate.order, repair, level.widths, spec));
      for (const auto& note : candidate.plan.notes)
        if (notes.insert(note).second) log::info("{}", note);
    }
  }
  evaluate(model, base, candidates, orders, evaluations);

  const ordered_json report = make_report(config, candidates, spec, evaluations);
  write_text(output / "sweep.json", report.dump(2) + "\n");
  write_text(output / "sweep.csv", sweep_csv(report));
  write_text(output / "sweep.svg", sweep_chart(report, config.grid));
  return report;
}

}  // namespace elastify::pipeline
