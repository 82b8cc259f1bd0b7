#include "pipeline/repairs.h"

#include <ATen/ATen.h>

#include <chrono>

#include "base/error.h"
#include "base/log.h"
#include "pipeline/fitting_text.h"
#include "recover/closed_form.h"
#include "recover/level_repairs.h"

namespace elastify::pipeline {
namespace {

/// Describes the part of a level's repairs that is kept, and the reason.
std::string described(const recover::Verdict& verdict) {
  std::string text = verdict.share == 1   ? "repairs kept"
                     : verdict.share > 0  ? fmt::format("repairs shrunk to {}", verdict.share)
                     : verdict.keeps_norm ? "repairs dropped but for the output norm"
                                          : "repairs dropped";
  text +=
      fmt::format(" (held-out divergence {:.3f} nats, {:.3f} without repairs", verdict.kept, verdict.without);
  if (verdict.share < 1) text += fmt::format(", {:.3f} with all of them", verdict.fitted);
  text += ')';
  if (verdict.n_shrunk + verdict.n_dropped > 0)
    text += fmt::format("; of {} matrices, {} shrunk and {} dropped before", verdict.n_matrices,
                        verdict.n_shrunk, verdict.n_dropped);
  return text;
}

}  // namespace

std::vector<nn::LevelRepair> fit_repairs(const OpenModel& source, const nn::Decoder& decoder,
                                         const std::vector<Level>& levels,
                                         const recover::ClosedFormOptions& options, const TextOptions& text) {
  std::vector<Widths> widths;
  for (const Level& level : levels) widths.push_back(level.widths);
  if (!options.guard || options.compensation == Compensation::kNone)
    return recover::fit_levels(decoder, fitting_batches(source, decoder, text), widths, options);
  const FittingText guarded = guarded_text(source, decoder, text);
  if (guarded.held_out.is_empty()) {
    log::warn(
        "no repairs: the text is too short to hold out a sequence of {} tokens, on which they would be "
        "judged",
        text.seq);
    return recover::fit_levels(decoder, guarded.batches, widths, recover::ClosedFormOptions{});
  }
  std::vector<recover::Verdict> verdicts;
  auto repairs = recover::fit_levels(decoder, guarded.batches, widths, options, guarded.held_out, &verdicts);
  for (size_t i = 0; i < levels.size(); ++i)
    log::info("{}: {}", level_name(levels[i].nominal), described(verdicts[i]));
  return repairs;
}

void write_repairs(const OpenModel& source, const ElasticPlan& plan,
                   const recover::ClosedFormOptions& options, const Calibration& calibration,
                   const fs::path& reordered) {
  const std::string name = name_of(options.compensation);
  if (calibration.text.data.empty())
    throw UsageError(fmt::format("compensation '{}' needs calibration text, and none is given", name),
                     "--data FILE... (or self), beside --profile too");
  // Repairs are fitted to the stored weights, which are rounded to the stored type.
  const Checkpoint checkpoint = Checkpoint::open(reordered);
  const nn::Decoder decoder(
      checkpoint, placed(checkpoint.spec(), calibration.compute, calibration.text, calibration.max_ram));
  const auto start = std::chrono::steady_clock::now();
  std::vector<Level> levels;
  for (const Level& level : plan.levels)
    if (level.nominal < 1) levels.push_back(level);
  const auto fitted = fit_repairs(source, decoder, levels, options, calibration.text);
  for (size_t i = 0; i < levels.size(); ++i) {
    LevelRepairs repairs = recover::to_host(fitted[i], checkpoint.spec(), levels[i], options.compensation);
    if (options.guard) repairs.compensation = repairs.parts();
    if (repairs.compensation != Compensation::kNone)
      save_repairs(repairs, checkpoint.spec(), levels[i], repairs_directory(reordered, levels[i].nominal));
  }
  log::info("{} of {} levels fitted in {:.1f} s", name, levels.size(),
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

namespace {

void warn_if_unwanted(const fs::path& file, Compensation held, bool wanted) {
  if (!wanted && held != Compensation::kNone)
    log::warn(
        "{}: its repairs ({}) are part of the file; to evaluate the level without them, give the reordered "
        "directory",
        file.string(), name_of(held));
}

AppliedRepairs of_artifact(double level, const OpenModel& model, const nn::Decoder& decoder, bool wanted) {
  const fs::path& file = model.checkpoint.path();
  const Compensation held = held_repairs(file).parts;
  AppliedRepairs repairs{.parts = held, .level = {}};
  warn_if_unwanted(file, held, wanted);
  if (!wanted) return repairs;
  const auto adapter = find_adapter(model.files->directory(), model.checkpoint, level);
  if (!adapter) return repairs;
  repairs.parts |= Compensation::kAdapter;
  repairs.level = recover::to_tensors(*adapter, decoder);
  return repairs;
}

}  // namespace

AppliedRepairs repairs_of(const fs::path& path, std::optional<double> level, const OpenModel& model,
                          const nn::Decoder& decoder, bool wanted) {
  if (stated_level(path)) {
    const Compensation held = held_repairs(path).parts;
    warn_if_unwanted(path, held, wanted);
    return {.parts = held, .level = {}};
  }
  if (!level || *level >= 1) return {};
  if (model.files) return of_artifact(*level, model, decoder, wanted);
  if (!wanted || !model.plan) return {};
  const auto found = find_repairs(path, model.checkpoint.spec(), find_level(*model.plan, *level));
  if (!found) return {};
  return {found->compensation, recover::to_tensors(*found, decoder)};
}

}  // namespace elastify::pipeline
