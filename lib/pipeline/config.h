#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "base/file.h"
#include "export/export_model.h"
#include "nn/options.h"
#include "plan/make_plan.h"
#include "profile/options.h"
#include "recover/options.h"
#include "reorder/reorder_model.h"
#include "report/sweep_view.h"

namespace elastify::pipeline {

struct ReorderSection {
  Metric metric = Metric::kTaylor;
  plan::PlanOptions plan;
  reorder::ReorderOptions reorder;
  recover::ClosedFormOptions repair;  ///< of every level but the full model
  int64_t fit_tokens = 0;  ///< calibration tokens that repairs are fitted on; 0: as many as the profile reads
};

struct EvalOptions {
  std::vector<std::string> data;   ///< text files; for a run, text that was not calibrated on
  int64_t tokens = 8192;           ///< 0: all of the data
  int64_t seq = 256;               ///< tokens per sequence
  int64_t batch = 8;               ///< sequences per forward pass
  std::vector<std::string> tasks;  ///< multiple-choice items, .jsonl (sweeps only)
  int64_t items = 0;               ///< the first ones of every task; 0: all
  bool baseline = true;            ///< also measure a random order at every level (runs only)
};

/// A run, as its YAML file states it: one section per command.
struct RunConfig {
  std::string model;      ///< Hugging Face directory, .gguf or llama2.c .bin
  std::string tokenizer;  ///< where the model does not carry one
  std::string output;     ///< directory of everything the run makes
  int64_t seed = 0;
  int64_t threads = 0;  ///< 0: all cores
  std::string max_ram;  ///< for profiling, "4GiB": larger models are streamed; empty: no limit
  nn::DecoderOptions compute;
  profile::ProfileOptions profile;
  ReorderSection reorder;
  exporter::ExportOptions export_;
  EvalOptions eval;
};

struct SweepPoint {
  std::vector<std::string> values;  ///< one per axis of the grid
  RunConfig config;                 ///< with these values in it
};

/// A run's options and a grid over some of them.
struct SweepConfig {
  RunConfig base;                                  ///< `export` and `eval.baseline` are not part of a sweep
  std::vector<report::SweepAxis> grid;             ///< rows first, if there are any
  std::vector<std::vector<std::string>> row_keys;  ///< the options that each row sets
  std::vector<SweepPoint> points;                  ///< all combinations, the last axis fastest
};

/// Reads a run's YAML. Relative paths in it are relative to the working directory.
/// \param overrides  "section.key=value", applied over the file
/// \throws UsageError  naming file, line and key: unknown (with the nearest known one), duplicate, of the
/// wrong type, out of range
RunConfig load_config(const fs::path& file, const std::vector<std::string>& overrides = {});

/// Reads a sweep's YAML: a run's with a section `grid` that maps options to lists of values, as in
/// `reorder.metric: [taylor, magnitude]`, or a list `rows` of sets of options, each with a `name`, or both:
/// then every row at every point of the grid. What may vary is how units are ranked and levels planned:
/// `seed` and the options of `profile` and `reorder`; the model, the text and the levels are the same for all
/// points.
/// \throws UsageError  as load_config(); for every value of every axis, too
SweepConfig load_sweep(const fs::path& file, const std::vector<std::string>& overrides = {});

// The resolved options, every field present, in the spelling of the YAML file.
nlohmann::ordered_json to_json(const RunConfig& config);
nlohmann::ordered_json to_json(const SweepConfig& config);
nlohmann::ordered_json to_json(const profile::ProfileOptions& options);
nlohmann::ordered_json to_json(const ReorderSection& options);
nlohmann::ordered_json to_json(const EvalOptions& options);
/// The value of an option, as in value_of(config, "reorder.metric"); null where there is no such option.
nlohmann::ordered_json value_of(const RunConfig& config, const std::string& key);

}  // namespace elastify::pipeline
