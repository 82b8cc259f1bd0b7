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
#include "base/output_lock.h"
#include "base/progress.h"
#include "base/version.h"
#include "eval/evaluate.h"
#include "pipeline/fit_to_model.h"
#include "pipeline/keys.h"
#include "pipeline/measure_profile.h"
#include "pipeline/order.h"
#include "pipeline/outputs.h"
#include "pipeline/reorder_model.h"
#include "pipeline/repairs.h"
#include "recover/closed_form.h"
#include "report/json_values.h"
#include "report/sweep_view.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Points whose importances are measured in the same passes over the same tokens.
struct ProfileGroup {
  std::string key;
  profile::ProfileOptions options;  ///< metrics: those of the points; removal_tokens: 0 if no plan needs it
  std::vector<size_t> points;
};

std::vector<ProfileGroup> group_by_profile(const SweepConfig& config, const ordered_json& source) {
  std::vector<ProfileGroup> groups;
  for (size_t i = 0; i < config.points.size(); ++i) {
    const RunConfig& point = config.points[i].config;
    ordered_json options = key_of(point, options::Result::kProfile);
    for (const char* varied : {"metrics", "second_moments"})  // these can be added to a kept profile
      options["options"]["profile"].erase(varied);
    const std::string key = digest_of("profile", {source, options});
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
    if (plan::facts_of(point.reorder.plan.method).needs_removal)
      group->options.removal_tokens = point.profile.removal_tokens;
  }
  return groups;
}

/// The group's profile. Kept parts are loaded, and missing ones are measured together.
Profile obtain_profile(const OpenModel& model, const RunConfig& config, const ProfileGroup& group,
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
  profile::WorkOptions work;
  work.max_ram = config.max_ram;
  work.existing = profile::WorkOptions::Existing::kResumeOrReplace;
  Measured measured = measure_profile(model, config.compute, missing, work, unfinished_path(file));
  std::error_code ignored;
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
  fs::remove_all(unfinished_path(file), ignored);
  return profile;
}

/// The name under which results of a task are reported.
std::string task_name(const std::string& file) {
  return fs::path(file).stem().string();
}

void require_distinct_tasks(const eval::EvalOptions& options) {
  std::map<std::string, std::string> files;
  for (const std::string& file : options.tasks)
    if (const auto [known, is_new] = files.emplace(task_name(file), file); !is_new)
      throw UsageError(
          fmt::format("eval.tasks: {} and {} are both called '{}'", known->second, file, known->first),
          "rename one of the files");
}

/// The data that models are evaluated on: a text and multiple-choice items.
struct Examination {
  TokenBatches batches;
  std::unique_ptr<Tokenizer> tokenizer;  ///< null without tasks
  std::vector<std::pair<std::string, std::vector<TaskItem>>> tasks;

  Examination(const OpenModel& model, const eval::EvalOptions& options) {
    if (options.tasks.empty()) return;
    tokenizer = tokenizer_of(model);
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

/// Evaluations in memory and on disk, under keys of all their inputs by content.
class Evaluations {
 public:
  Evaluations(fs::path directory, ordered_json common)
      : directory_(std::move(directory)), common_(std::move(common)) {}

  /// \param order   digest of the permutation; ignored at full width
  /// \param repair  repair_key() of the point; empty if it has no repairs
  std::string key(const std::string& order, const std::string& repair, const Widths& widths,
                  const ModelSpec& spec) const {
    const bool full = widths == full_widths(spec);
    ordered_json content{
        {"version", kVersion}, {"common", common_}, {"order", full ? "" : order}, {"widths", widths}};
    if (!full && !repair.empty()) content["repair"] = repair;
    return sha256_hex(content.dump());
  }
  /// The kept evaluation; null if there is none.
  const Evaluation* find(const std::string& key) {
    if (const auto known = known_.find(key); known != known_.end()) return &known->second;
    if (!fs::exists(file(key))) return nullptr;
    const auto json = ordered_json::parse(read_text(file(key)), nullptr, false);
    for (const char* name : {"nll", "bits_per_byte", "tokens", "tokens_per_second"})
      if (!json.is_object() || !json.contains(name)) return nullptr;
    Evaluation evaluation;
    evaluation.tasks = json.value("tasks", ordered_json::object());
    eval::PerplexityResult& result = evaluation.text;
    result.nll = report::number_of(json.at("nll"));
    result.perplexity = std::exp(result.nll);
    result.bits_per_byte = report::number_of(json.at("bits_per_byte"));
    result.tokens = json.at("tokens").get<int64_t>();
    result.tokens_per_second = report::number_of(json.at("tokens_per_second"));
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

/// Fits repairs of these levels, by index of the level.
std::map<size_t, nn::LevelRepair> repairs_of_levels(const OpenModel& model, const nn::Decoder& decoder,
                                                    const Candidate& candidate,
                                                    const std::set<size_t>& levels) {
  std::vector<Level> narrow;
  for (const size_t i : levels) narrow.push_back(candidate.plan.levels[i]);
  const RunConfig& config = *candidate.config;
  auto fitted = fit_repairs(model, decoder, narrow, config.reorder.repair, fitting_calibration(config).text);
  std::map<size_t, nn::LevelRepair> repairs;
  for (const size_t i : levels) repairs[i] = std::move(fitted[repairs.size()]);
  return repairs;
}

/// Evaluates the levels of all points that have no kept evaluation.
class Evaluator {
 public:
  /// \param orders  permutations by digest
  Evaluator(const OpenModel& model, const RunConfig& config, const std::map<std::string, Permutation>& orders,
            Evaluations& evaluations)
      : model_(model),
        config_(config),
        orders_(orders),
        evaluations_(evaluations),
        examination_(model, config.eval) {}

  void evaluate(const std::vector<Candidate>& candidates) {
    count_work(candidates);
    log::info("{} points, {} evaluations to do", candidates.size(), missing_.size());
    if (missing_.empty()) return;
    start_ = Clock::now();
    evaluate_full(candidates.front());
    for (size_t p = 0; p < candidates.size(); ++p) {
      const std::set<size_t> levels = missing_levels(candidates[p]);
      if (levels.empty()) continue;
      const auto began = Clock::now();
      const std::string label = fmt::format("point {}/{} ({})", p + 1, candidates.size(), candidates[p].name);
      evaluate_point(candidates[p], levels, label);
      const std::string left = work_left_ > 0 && work_done_ > 0
                                   ? fmt::format(", about {} left in all",
                                                 clock_text(seconds_since(start_) / work_done_ * work_left_))
                                   : "";
      log::info("{}: done in {:.1f} s{}", label, seconds_since(began), left);
    }
  }

 private:
  /// Counts the remaining work, in parameters times passes over the text. The time is about proportional to
  /// it.
  void count_work(const std::vector<Candidate>& candidates) {
    for (const Candidate& candidate : candidates)
      for (const size_t i : missing_levels(candidate)) {
        const int64_t work = n_params(model_.checkpoint.spec(), candidate.plan.levels[i].widths);
        if (missing_.emplace(candidate.keys[i], work).second) work_left_ += static_cast<double>(work);
      }
  }

  std::set<size_t> missing_levels(const Candidate& candidate) const {
    std::set<size_t> levels;
    for (size_t i = 0; i < candidate.keys.size(); ++i)
      if (evaluations_.find(candidate.keys[i]) == nullptr) levels.insert(i);
    return levels;
  }

  /// \param decoder  with the units in the candidate's order
  double measure(const nn::Decoder& decoder, const Candidate& candidate, size_t i,
                 const nn::LevelRepair* repairs, Progress* progress) {
    const Level& level = candidate.plan.levels[i];
    Evaluation result{eval::perplexity(decoder, examination_.batches, &level.widths, config_.eval.text.batch,
                                       progress, repairs)};
    for (const auto& [name, items] : examination_.tasks) {
      const auto task =
          eval::multiple_choice(decoder, *examination_.tokenizer, items, &level.widths, repairs);
      result.tasks[name] = {
          {"accuracy", task.accuracy}, {"accuracy_norm", task.accuracy_norm}, {"items", task.items}};
    }
    evaluations_.keep(candidate.keys[i], result, candidate.name, level.nominal);
    const auto work = static_cast<double>(missing_.at(candidate.keys[i]));
    work_done_ += work;
    work_left_ -= work;
    return result.text.perplexity;
  }

  /// Evaluates the full model, which is the same in any order.
  void evaluate_full(const Candidate& any) {
    const nn::Decoder decoder(model_.checkpoint, config_.compute);
    examination_.batches = load_batches(model_, decoder, config_.eval.text, false);
    if (missing_.contains(any.keys.back()))
      log::info("full model: perplexity {:.4f}",
                measure(decoder, any, any.keys.size() - 1, nullptr, nullptr));
  }

  void evaluate_point(const Candidate& candidate, const std::set<size_t>& levels, const std::string& label) {
    if (loaded_ != candidate.order) {
      decoder_.reset();  // never two models in memory
      decoder_.emplace(arranged(model_.checkpoint, orders_.at(candidate.order)), config_.compute);
      loaded_ = candidate.order;
    }
    std::set<size_t> narrow;
    for (const size_t i : levels)
      if (candidate.plan.levels[i].widths != full_widths(model_.checkpoint.spec())) narrow.insert(i);
    std::map<size_t, nn::LevelRepair> repairs;
    if (is_repaired(*candidate.config))
      with_context(candidate.name,
                   [&] { repairs = repairs_of_levels(model_, *decoder_, candidate, narrow); });
    Progress progress(label, static_cast<int64_t>(levels.size()) * examination_.batches.n_tokens(), "tokens");
    for (const size_t i : levels)
      if (evaluations_.find(candidate.keys[i]) == nullptr)
        with_context(fmt::format("{}, level {}", candidate.name, candidate.plan.levels[i].nominal), [&] {
          const auto repair = repairs.find(i);
          measure(*decoder_, candidate, i, repair == repairs.end() ? nullptr : &repair->second, &progress);
        });
  }

  const OpenModel& model_;
  const RunConfig& config_;
  const std::map<std::string, Permutation>& orders_;
  Evaluations& evaluations_;
  Examination examination_;
  std::map<std::string, int64_t> missing_;  ///< work by key
  double work_left_ = 0, work_done_ = 0;
  Clock::time_point start_;
  std::optional<nn::Decoder> decoder_;  ///< with the units in the order `loaded_`
  std::string loaded_;
};

/// The point's plan. A plan that needs measurements is kept under a key of all that it depends on.
/// \param source  the model's identity()
ElasticPlan plan_point(const OpenModel& model, const ordered_json& source, Evidence evidence,
                       const Permutation& order, const RunConfig& point, const fs::path& kept) {
  const Calibration calibration = calibration_of(point);
  evidence.calibration = &calibration;
  const auto make = [&] { return plan_widths(model, evidence, order, point.reorder.plan).plan; };
  if (!plan::facts_of(point.reorder.plan.method).measures_losses) return make();
  const ordered_json content{{"model", source},
                             {"order", digest(order)},
                             {"options", key_of(point, options::Result::kWidths)},
                             {"corpus", evidence.profile->corpus_digest},
                             {"removal_loss", evidence.profile->removal_loss}};
  const fs::path file = kept / fmt::format("plan-{}.json", digest_of("widths", content));
  const ModelSpec& spec = model.checkpoint.spec();
  if (!fs::exists(file)) save_plan(make(), spec, file);
  return load_plan(file, spec);
}

/// The part of an evaluation's key for a point's repairs; empty if it has none.
std::string repair_key(const RunConfig& point) {
  return is_repaired(point) ? digest_of("repairs", key_of(point, options::Result::kRepairs)) : "";
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
  for (const report::SweepAxis& axis : config.grid)
    report["axes"].push_back({{"key", axis.key},
                              {"values", axis.key == report::kRows ? ordered_json(axis.values)
                                                                   : configuration.at("grid").at(axis.key)}});
  for (size_t p = 0; p < candidates.size(); ++p) {
    const Candidate& candidate = candidates[p];
    ordered_json point{{"name", candidate.name},
                       {"options", ordered_json::object()},
                       {"notes", candidate.plan.notes},
                       {"levels", ordered_json::array()}};
    for (size_t i = 0; i < config.grid.size(); ++i)
      point["options"][config.grid[i].key] = config.grid[i].key == report::kRows
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

ordered_json sweep(SweepConfig config, bool force) {
  const RunConfig& base = config.base;
  const fs::path output = base.output, profiles = output / ".profiles", kept = output / ".points";
  const OutputLock lock(output);
  const OpenModel model = open_model(base.model, base.tokenizer);
  const ModelSpec& spec = model.checkpoint.spec();
  fit_to_model(config.base, spec);
  require_distinct_tasks(base.eval);
  require_resident(spec, base.eval.text, base.max_ram, "a sweep");
  std::vector<Candidate> candidates(config.points.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    candidates[i].name = report::point_name(config.points[i].values, config.grid);
    with_context(candidates[i].name, [&] {
      fit_to_model(config.points[i].config, spec);
      // Refuse a level that cannot be met before the profile is measured.
      const plan::PlanOptions& options = config.points[i].config.reorder.plan;
      if (options.method == plan::Method::kUniform) plan::make_plan(spec, nullptr, options);
    });
  }
  const fs::path names[] = {"config.json", "sweep.json", "sweep.csv", "sweep.svg"};
  require_own_directory(output, ".points", names, inputs_of(base));
  if (force && fs::exists(kept)) {  // the mark of a sweep's directory
    fs::remove_all(profiles);
    for (const auto& entry : fs::directory_iterator(kept)) fs::remove_all(entry.path());
  }
  fs::create_directories(kept);
  write_text(output / "config.json", to_json(config).dump(2) + "\n");

  const ordered_json source = identity(model);
  Evaluations evaluations(kept, {source, key_of(base, options::Result::kEvaluation)});
  std::map<std::string, Permutation> orders;
  std::set<std::string> notes;
  for (const ProfileGroup& group : group_by_profile(config, source)) {
    const Profile profile = obtain_profile(model, base, group, profiles / (group.key + ".h5"));
    const MomentSource moments = moments_of(profiles / (group.key + ".h5"), spec);
    for (const size_t i : group.points) {
      const RunConfig& point = config.points[i].config;
      Candidate& candidate = candidates[i];
      with_context(candidate.name, [&] {
        Permutation order =
            rank(model.checkpoint, &profile, moments, point.reorder.metric, point.seed, base.compute.device);
        candidate.plan = plan_point(model, source, {&profile, moments}, order, point, kept);
        candidate.order = digest(order);
        candidate.config = &point;
        orders.emplace(candidate.order, std::move(order));
      });
      for (const Level& level : candidate.plan.levels)
        candidate.keys.push_back(evaluations.key(candidate.order, repair_key(point), level.widths, spec));
      for (const auto& note : candidate.plan.notes)
        if (notes.insert(note).second) log::info("{}", note);
    }
  }
  Evaluator(model, base, orders, evaluations).evaluate(candidates);

  const ordered_json report = make_report(config, candidates, spec, evaluations);
  write_text(output / "sweep.json", report.dump(2) + "\n");
  write_text(output / "sweep.csv", report::sweep_csv(report));
  write_text(output / "sweep.svg", report::sweep_chart(report));
  return report;
}

}  // namespace elastify::pipeline
