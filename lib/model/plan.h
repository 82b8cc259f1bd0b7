#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/spec.h"

namespace elastify {

/// One width level: a sub-model made of the leading units of every space.
struct Level {
  double nominal = 1;        ///< the share that was asked for
  double decoder_ratio = 1;  ///< weights in decoder layers, kept / all
  double total_ratio = 1;    ///< all weights, embeddings and output included
  double budget_ratio = 1;   ///< the plan's budget, kept / all; `nominal` asks for this share
  Widths widths;             ///< [spaces]
};

/// Widths for every level, nested: no space is wider at a lower level. Width 0 leaves out the attention of a
/// layer, or the whole layer: see check_droppable().
struct ElasticPlan {
  std::string spec_hash;
  std::string method;                   ///< "uniform", "anchors", "zscore", "shortgpt", "dp" or "dp+kl"
  std::string budget = "decoder";       ///< the quantity that levels are shares of; see lib/plan/budget.h
  std::string curves = {};              ///< source of the curves that a search used, in words; else empty
  int64_t grid = 32;                    ///< MLP widths are multiples of this (or full)
  std::vector<int64_t> anchors;         ///< layers asked to stay full width, most important first
  std::vector<Level> levels;            ///< narrowest first, the last one is the full model
  std::vector<std::string> notes = {};  ///< requests that could not be met, in words
};

/// "level-050" for 0.5; further digits stay: "level-0375" for 0.375.
std::string level_name(double nominal);
/// The plan's level with this nominal share.
/// \throws UsageError  listing the plan's levels
const Level& find_level(const ElasticPlan& plan, double nominal);

/// JSON, see docs/formats.md.
/// \throws Error  naming file, level and space
void save_plan(const ElasticPlan& plan, const ModelSpec& spec, const fs::path& path);
ElasticPlan load_plan(const fs::path& path, const ModelSpec& spec);
/// Widths in range, nested, ratios as stated.
/// \throws Error
void check(const ElasticPlan& plan, const ModelSpec& spec);

/// Makes a level with ratios computed from the widths. `budget_ratio` is the ratio of the decoder weights
/// until another is set.
Level make_level(const ModelSpec& spec, double nominal, Widths widths);

}  // namespace elastify
