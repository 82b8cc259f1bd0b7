#include "pipeline/repairs.h"

#include <ATen/ATen.h>

#include <chrono>

#include "base/error.h"
#include "base/log.h"
#include "base/size.h"
#include "nn/token_ids.h"
#include "profile/memory.h"
#include "recover/closed_form.h"
#include "recover/level_repairs.h"

namespace elastify::pipeline {
profile::ProfileOptions fitting_text(const profile::ProfileOptions& profiled, const ReorderSection& options) {
  profile::ProfileOptions text = profiled;
  if (options.fit_tokens > 0) text.tokens = options.fit_tokens;
  return text;
}

std::vector<at::Tensor> calibration_batches(const OpenModel& source, const nn::Decoder& decoder,
                                            const profile::ProfileOptions& text, int64_t seed) {
  const TokenBatches batches =
      load_batches(source, decoder, text.data, text.seq, text.tokens, static_cast<uint64_t>(seed));
  const std::span<const std::vector<int32_t>> sequences = batches.sequences;
  std::vector<at::Tensor> ids;
  const auto step = static_cast<size_t>(text.batch);
  for (size_t first = 0; first < sequences.size(); first += step)
    ids.push_back(nn::stack_ids(sequences.subspan(first, std::min(step, sequences.size() - first))));
  return ids;
}

std::vector<at::Tensor> fitting_batches(const OpenModel& source, const nn::Decoder& decoder,
                                        const profile::ProfileOptions& text, int64_t seed) {
  std::vector<at::Tensor> batches = calibration_batches(source, decoder, text, seed);
  if (batches.size() == 1) batches = batches.front().split((batches.front().size(0) + 4) / 5);
  return batches;
}

void write_repairs(const OpenModel& source, const ElasticPlan& plan,
                   const recover::ClosedFormOptions& options, const Calibration& calibration, int64_t seed,
                   const fs::path& reordered) {
  const std::string name = name_of(options.compensation);
  if (calibration.text.data.empty())
    throw UsageError(fmt::format("compensation '{}' is fitted on text, and there is none", name),
                     "--data FILE... (or self), beside --profile too");
  // The weights as they are stored, rounded to the stored type.
  const Checkpoint checkpoint = Checkpoint::open(reordered);
  nn::DecoderOptions placement = calibration.compute;
  if (!calibration.max_ram.empty())
    placement.streamed =
        profile::must_stream(checkpoint.spec(), calibration.text, parse_bytes(calibration.max_ram));
  const nn::Decoder decoder(checkpoint, placement);
  const std::vector<at::Tensor> batches = fitting_batches(source, decoder, calibration.text, seed);
  const auto start = std::chrono::steady_clock::now();
  std::vector<const Level*> levels;
  std::vector<Widths> widths;
  for (const Level& level : plan.levels)
    if (level.nominal < 1) {
      levels.push_back(&level);
      widths.push_back(level.widths);
    }
  const auto fitted = recover::fit_levels(decoder, batches, widths, options);
  for (size_t i = 0; i < levels.size(); ++i)
    save_repairs(recover::to_host(fitted[i], checkpoint.spec(), *levels[i], options.compensation),
                 checkpoint.spec(), *levels[i], repairs_directory(reordered, levels[i]->nominal));
  log::info("{} of {} levels fitted in {:.1f} s", name, levels.size(),
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

namespace {

AppliedRepairs of_artifact(double level, const OpenModel& model, const nn::Decoder& decoder, bool wanted) {
  const fs::path& file = model.checkpoint.path();
  const Compensation held = held_repairs(file).parts;
  AppliedRepairs repairs{.parts = held, .level = {}};
  if (!wanted && held != Compensation::kNone)
    log::warn("{}: what is its own ({}) cannot be left off; evaluate the reordered directory to do without",
              file.string(), name_of(held));
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
  if (!level || *level >= 1) return {};
  if (model.files) return of_artifact(*level, model, decoder, wanted);
  if (!wanted || !model.plan) return {};
  const auto found = find_repairs(path, model.checkpoint.spec(), find_level(*model.plan, *level));
  if (!found) return {};
  return {found->compensation, recover::to_tensors(*found, decoder)};
}

}  // namespace elastify::pipeline
