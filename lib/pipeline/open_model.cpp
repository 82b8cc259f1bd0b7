#include "pipeline/open_model.h"

#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "data/companions.h"
#include "model/permutation.h"
#include "reorder/reorder_model.h"

namespace elastify::pipeline {
namespace {

/// Rows that models have beyond their tokenizer's tokens, so that sizes are round: 399 in Qwen2.5-7B.
constexpr int64_t kMostPadding = 1024;

void warn_if_foreign(const OpenModel& model) {
  const int64_t n_rows = model.checkpoint.spec().n_vocab;
  if (model.vocabulary && model.vocabulary->size() + kMostPadding < n_rows)
    log::warn("{}: the tokenizer has {} tokens for {} rows of the embedding, and may be another model's",
              model.checkpoint.path().string(), model.vocabulary->size(), n_rows);
}

}  // namespace

OpenModel open_model(const fs::path& path, const fs::path& tokenizer, std::optional<double> level) {
  if (!fs::exists(path))
    throw UsageError(fmt::format("{}: there is no such file or directory", path.string()));
  if (is_artifact(path)) {
    auto files = PlainFiles::of(path, level.value_or(1));
    const fs::path file = files->file(level.value_or(1));
    return {Checkpoint::open(file), find_vocabulary(file, tokenizer), std::nullopt, std::move(files)};
  }
  OpenModel model{Checkpoint::open(path), find_vocabulary(path, tokenizer), std::nullopt};
  warn_if_foreign(model);
  if (reorder::is_reordered(path)) {
    model.plan = load_plan(path / "plan.json", model.checkpoint.spec());
    model.permutation_digest = digest(load_permutation(path / "permutation.h5", model.checkpoint.spec()));
  }
  if (const auto stated = stated_level(path); stated && level && std::abs(*level - stated->nominal) > 1e-6)
    throw UsageError(fmt::format("{}: holds level {}, not {}", path.string(), stated->nominal, *level),
                     "give the artifact's directory, or leave out --level");
  else if (!stated && level && *level < 1 && !model.plan)
    throw UsageError(
        fmt::format("{}: this model has no level {}: it was not reordered", path.string(), *level),
        "make levels with `elastify reorder`, and give the directory that it writes");
  return model;
}

double true_ratio(const fs::path& path, std::optional<double> level) {
  if (const auto stated = stated_level(path)) return stated->decoder_ratio;
  if (!level || *level >= 1) return 1;
  if (is_artifact(path)) return stated_ratio(path, *level);
  return find_level(load_plan(path / "plan.json", Checkpoint::open(path).spec()), *level).decoder_ratio;
}

}  // namespace elastify::pipeline
