#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/spec.h"

namespace elastify {

/// One width level: a sub-model made of the leading units of every space.
struct Level {
  double nominal = 1;        ///< what was asked for
  double decoder_ratio = 1;  ///< weights in decoder layers, kept / all
  double total_ratio = 1;    ///< all weights, embeddings and output included
  double budget_ratio = 1;   ///< what the plan's budget counts, kept / all: what `nominal` is solved against
  Widths widths;             ///< [spaces]
};

/// Widths for every level, nested: no space is wider at a lower level. Width 0 leaves out the attention of a
/// layer, or the whole layer: see check_droppable().
struct ElasticPlan {
  std::string spec_hash;
  std::string method;                   ///< "uniform", "anchors", "zscore", "shortgpt", "dp" or "dp+kl"
  std::string budget = "decoder";       ///< what levels are shares of; lib/plan/budget.h has the spellings
  std::string curves = {};              ///< what searched widths went by, in words; else empty
  int64_t grid = 32;                    ///< MLP widths are multiples of this (or full)
  std::vector<int64_t> anchors;         ///< layers asked to stay full width, most important first
  std::vector<Level> levels;            ///< narrowest first, the last one is the full model
  std::vector<std::string> notes = {};  ///< what could not be met, in words
};

/// "level-050" for 0.5, "level-025"; 5% steps and finer keep their digits: "level-0375".
std::string level_name(double nominal);
/// The level asked for.
/// \throws UsageError  listing the levels there are
const Level& find_level(const ElasticPlan& plan, double nominal);

/// JSON, see docs/formats.md.
/// \throws Error  naming file, level and space
void save_plan(const ElasticPlan& plan, const ModelSpec& spec, const fs::path& path);
ElasticPlan load_plan(const fs::path& path, const ModelSpec& spec);
/// Widths in range, nested, ratios as stated.
/// \throws Error
void check(const ElasticPlan& plan, const ModelSpec& spec);

/// Fills the ratios from the widths; the budget's is that of the decoder weights until another is set.
Level make_level(const ModelSpec& spec, double nominal, Widths widths);

}  // namespace elastify
