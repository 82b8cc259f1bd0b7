#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "eval/options.h"
#include "export/options.h"
#include "nn/options.h"
#include "options/option.h"
#include "options/yaml.h"
#include "pipeline/verify_options.h"
#include "plan/options.h"
#include "profile/options.h"
#include "recover/options.h"
#include "reorder/options.h"

// The options of all stages. The flags of each command are a part of them; a YAML file states them by
// section. Free of LibTorch.

namespace elastify::pipeline {

/// Options of `reorder`: the order of the units, the widths of the levels, and their repairs.
struct ReorderSection {
  Metric metric = Metric::kTaylor;
  plan::PlanOptions plan;
  reorder::ReorderOptions reorder;
  recover::ClosedFormOptions repair;  ///< of every level but the full model
  int64_t fit_tokens = 0;  ///< calibration tokens that repairs are fitted on; 0: as many as profiled
};
void declare(options::Options& options, ReorderSection& fields);

struct RunConfig {
  std::string model;                ///< Hugging Face directory, .gguf or llama2.c .bin
  std::string tokenizer;            ///< for models that contain none
  std::string output;               ///< directory of everything that the run makes
  std::string preset = "balanced";  ///< fills the options that are not given, see presets.h
  int64_t seed = 0;
  int64_t threads = 0;  ///< 0: all cores
  int64_t max_ram = 0;  ///< bytes that the process may hold; larger models are streamed; 0: no limit
  nn::DecoderOptions compute;
  profile::ProfileOptions profile;
  ReorderSection reorder;
  exporter::ExportOptions export_;
  VerifyOptions verify;
  eval::EvalOptions eval;
  options::Sources sources;  ///< where each value comes from, by key; not listed: the default
};

/// Declares the options of the whole run, bound to `config`: those without a section first.
void declare(options::Options& options, RunConfig& config);
/// The values of all options, by section.
nlohmann::ordered_json to_json(const RunConfig& config);
/// The values of the options that change these results, by section, for the keys of kept results.
nlohmann::ordered_json to_json(const RunConfig& config, options::Result results);
/// The value of one option, as in value_of(config, "reorder.metric"); null if there is no such option.
nlohmann::ordered_json value_of(const RunConfig& config, const std::string& key);
/// All options as YAML, with their sources in comments. load_config() reads the same values back.
std::string to_yaml(const RunConfig& config);

/// Reads a run's YAML. Relative paths in it are relative to the working directory.
/// \param overrides  "section.key=value", applied over the file
/// \throws UsageError  naming place and key: unknown (with the nearest known one), duplicate, of the wrong
///   type, out of range, missing
RunConfig load_config(const fs::path& file, const std::vector<std::string>& overrides = {});
/// Reads a run's options from a YAML tree.
/// \param elsewhere  keys of the top level that the caller reads
RunConfig read_config(const std::string& file, const options::YamlNode& root,
                      const std::vector<std::string>& elsewhere = {});

/// Sets the options that follow from others, after all given options are set: fills in the preset, shares the
/// seed and the metric among the stages, lets the profile measure what the order and the widths need, and
/// resolves the repair options that were left open.
/// \throws UsageError  for an unknown preset
void complete(RunConfig& config);

}  // namespace elastify::pipeline
