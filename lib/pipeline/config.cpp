#include "pipeline/config.h"

#include <algorithm>

#include "base/error.h"
#include "base/size.h"
#include "pipeline/presets.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;
using options::Result;

/// The options of a configuration that is only read. Options refer to fields by non-const pointers, so the
/// list is bound to a copy.
class Listed {
 public:
  explicit Listed(const RunConfig& config) : copy_(config) { declare(list_, copy_); }
  options::Options& operator*() { return list_; }
  options::Options* operator->() { return &list_; }

 private:
  RunConfig copy_;
  options::Options list_;
};

options::Codec<int64_t> bytes_codec() {
  return options::text_codec<int64_t>(
      "BYTES", [](const std::string& text) { return text.empty() || text == "0" ? 0 : parse_bytes(text); },
      [](const int64_t& bytes) { return bytes == 0 ? "" : std::to_string(bytes); });
}

/// Sets the options of the preset that were not given, with the preset as their source. Presets need
/// calibration text, so nothing is set without it.
void fill_in(RunConfig& config) {
  const Preset& preset = preset_named(config.preset);
  if (config.profile.text.data.empty()) return;
  options::Options options;
  declare(options, config);
  const std::string source = fmt::format("preset {}", preset.name);
  for (const auto& [name, value] : preset.values) {
    const std::string key(name);
    if (config.sources.contains(key)) continue;
    if (value == kEighthOfWidth)
      config.sources[key] = source;  // fit_to_model() sets the value
    else
      options.set(key, options::Given::text(std::string(value), source), config.sources);
  }
}

}  // namespace

void declare(options::Options& options, VerifyOptions& fields) {
  options.add("tolerance", fields.tolerance, "tolerance of logits, relative to their standard deviation")
      .between(1e-9, 1);
  options.add("tokens", fields.tokens, "length of the sequence that logits are compared on").at_least(2);
}

void declare(options::Options& options, ReorderSection& fields) {
  options.add("metric", fields.metric, "importance to order by", options::enum_codec<Metric>("metric"))
      .affects(Result::kOrder | Result::kWidths);
  declare(options, fields.plan);
  declare(options, fields.reorder);
  declare(options, fields.repair);
  options
      .add("fit_tokens", fields.fit_tokens,
           "calibration tokens that repairs are fitted on; 0: as many as --tokens")
      .at_least(0)
      .affects(Result::kRepairs)
      .group("repairs");
}

void declare(options::Options& options, RunConfig& config) {
  options.add("model", config.model, "Hugging Face directory, .gguf or llama2.c .bin");
  options
      .add("tokenizer", config.tokenizer,
           "tokenizer.json, .model, .bin, .gguf or a directory with one, where the model carries none")
      .group("common");
  options.add("output", config.output, "directory of everything that is made");
  options.add("preset", config.preset, "fills the options that are not given",
              options::text_codec<std::string>(
                  "NAME", [](const std::string& name) { return std::string(preset_named(name).name); },
                  [](const std::string& name) { return name; }, preset_choices()));
  const Result drawn =
      Result::kProfile | Result::kOrder | Result::kWidths | Result::kRepairs | Result::kProof;
  options.add("seed", config.seed, "seed of everything random").at_least(0).affects(drawn).group("common");
  options.add("threads", config.threads, "threads; 0: all cores")
      .between(0, 4096)
      .affects(drawn | Result::kEvaluation)
      .group("common");
  options
      .add("max_ram", config.max_ram,
           "memory to stay within, as 4GiB: a model that does not fit is streamed layer by layer [no limit]",
           bytes_codec())
      .group("common");
  declare(options, config.compute);
  options.section("profile", Result::kProfile | Result::kWidths | Result::kRepairs, config.profile);
  options.section("reorder", Result::kRepairs, config.reorder);
  options.section("export", Result::kArtifact, config.export_);
  options.section("verify", Result::kProof, config.verify);
  options.section("eval", Result::kEvaluation, config.eval);
}

ordered_json to_json(const RunConfig& config) {
  return Listed(config)->json();
}

ordered_json to_json(const RunConfig& config, Result results) {
  return Listed(config)->json(results);
}

ordered_json value_of(const RunConfig& config, const std::string& key) {
  Listed listed(config);
  const options::Option* option = listed->find(key);
  return option == nullptr ? ordered_json() : option->value();
}

std::string to_yaml(const RunConfig& config) {
  Listed listed(config);
  return options::to_yaml(*listed, config.sources);
}

void complete(RunConfig& config) {
  fill_in(config);
  config.profile.text.seed = config.seed;
  config.verify.seed = config.seed;
  config.export_.max_ram = config.max_ram;
  config.verify.max_ram = config.max_ram;
  config.reorder.plan.metric = config.reorder.metric;
  const auto derive = [&](const char* key, const char* from) { config.sources.emplace(key, from); };
  auto& metrics = config.profile.metrics;
  if (std::find(metrics.begin(), metrics.end(), config.reorder.metric) == metrics.end()) {
    if (!config.sources.contains("profile.metrics")) metrics.clear();
    metrics.push_back(config.reorder.metric);
    config.sources["profile.metrics"] = "follows from reorder.metric";
  }
  if (!config.profile.second_moments && plan::facts_of(config.reorder.plan.method).needs_moments) {
    config.profile.second_moments = true;
    config.sources["profile.second_moments"] = "follows from reorder.plan";
  }
  config.reorder.repair = recover::resolved(config.reorder.repair);
  for (const char* key : {"reorder.sequential", "reorder.whole_stream"})
    derive(key, "follows from reorder.compensate");
}

RunConfig read_config(const std::string& file, const options::YamlNode& root,
                      const std::vector<std::string>& elsewhere) {
  RunConfig config;
  options::Options options;
  declare(options, config);
  options::set_from_yaml(options, root, config.sources, elsewhere);
  for (const auto& [key, value] : {std::pair{"model", &config.model}, std::pair{"output", &config.output}})
    if (value->empty()) throw UsageError(fmt::format("{}: {} is missing", file, key));
  if (config.profile.text.data.empty()) config.profile.text.data = {"self"};
  if (config.eval.text.data.empty())
    throw UsageError(fmt::format("{}: eval.data is missing", file),
                     "name a text file that is not calibrated on");
  complete(config);
  return config;
}

RunConfig load_config(const fs::path& file, const std::vector<std::string>& overrides) {
  const options::YamlNode root = options::load_yaml(file, overrides);
  for (const char* key : {"grid", "rows"})
    if (const options::YamlNode* varied = root.find(key))
      throw UsageError(fmt::format("{}: {}: a run has no {}", varied->place, key, key),
                       fmt::format("this is a sweep: `elastify sweep {}`", file.string()));
  RunConfig config = read_config(file.string(), root);
  if (!config.eval.tasks.empty())
    throw UsageError(fmt::format("{}: eval.tasks: a run is measured on text alone", file.string()),
                     "sweeps take tasks, and so does `elastify eval --task`");
  return config;
}

}  // namespace elastify::pipeline
