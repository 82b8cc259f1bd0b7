#include "pipeline/repairs.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cstring>

#include "base/error.h"
#include "base/log.h"
#include "base/size.h"
#include "nn/host_tensor.h"
#include "nn/token_ids.h"
#include "profile/memory.h"
#include "recover/closed_form.h"

namespace elastify::pipeline {
namespace {

std::optional<HostTensor> to_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) return std::nullopt;
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  HostTensor host = HostTensor::allocate(DType::kF32, Shape(values.sizes().begin(), values.sizes().end()));
  std::memcpy(host.writable().data(), values.data_ptr<float>(), host.bytes.size());
  return host;
}

at::Tensor to_device(const std::optional<HostTensor>& tensor, const nn::Decoder& decoder) {
  return tensor ? nn::as_tensor(*tensor).to(decoder.device(), decoder.dtype()) : at::Tensor();
}

}  // namespace

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

LevelRepairs to_level_repairs(const nn::LevelRepair& fitted, const ModelSpec& spec, const Level& level,
                              std::string compensation) {
  LevelRepairs repairs{.nominal = level.nominal, .compensation = std::move(compensation), .layers = {}};
  repairs.layers.resize(fitted.layers.size());
  for (const RepairPlace& place : repair_places(repairs, spec, level.widths)) {
    const nn::TensorRepair* repair = fitted.find(place.tensor->layer, place.tensor->role);
    if (repair == nullptr) continue;
    *place.repair = {.weight = to_host(repair->weight),
                     .a = to_host(repair->a),
                     .b = to_host(repair->b),
                     .bias = to_host(repair->bias)};
  }
  repairs.output_norm = to_host(fitted.output_norm);
  return repairs;
}

nn::LevelRepair to_level_repair(const LevelRepairs& repairs, const nn::Decoder& decoder) {
  const auto on_device = [&](const MatrixRepair& repair) {
    return nn::TensorRepair{.weight = to_device(repair.weight, decoder),
                            .a = to_device(repair.a, decoder),
                            .b = to_device(repair.b, decoder),
                            .bias = to_device(repair.bias, decoder)};
  };
  nn::LevelRepair level{.layers = {}, .output_norm = to_device(repairs.output_norm, decoder)};
  for (const LayerRepairs& layer : repairs.layers)
    level.layers.push_back(
        {{Role::kAttnOut, on_device(layer.attention_out)}, {Role::kDown, on_device(layer.down)}});
  return level;
}

void write_repairs(const OpenModel& source, const ElasticPlan& plan,
                   const recover::ClosedFormOptions& options, const Calibration& calibration, int64_t seed,
                   const fs::path& reordered) {
  const std::string name(recover::name_of(options.compensation));
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
    save_repairs(to_level_repairs(fitted[i], checkpoint.spec(), *levels[i], name), checkpoint.spec(),
                 *levels[i], repairs_directory(reordered, levels[i]->nominal));
  log::info("{} of {} levels fitted in {:.1f} s", name, levels.size(),
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

namespace {

AppliedRepairs of_artifact(double level, const OpenModel& model, const nn::Decoder& decoder, bool wanted) {
  const fs::path& file = model.checkpoint.path();
  const std::string held = held_repairs(file);
  AppliedRepairs repairs;
  if (!held.empty()) repairs.name = held;
  if (!wanted && !held.empty())
    log::warn("{}: what is its own ({}) cannot be left off; evaluate the reordered directory to do without",
              file.string(), held);
  if (!wanted) return repairs;
  const auto adapter = find_adapter(model.files->directory(), model.checkpoint, level);
  if (!adapter) return repairs;
  repairs.name = held.empty() ? "adapter" : "adapter+" + held;
  repairs.level = to_level_repair(*adapter, decoder);
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
  return {found->compensation, to_level_repair(*found, decoder)};
}

}  // namespace elastify::pipeline
