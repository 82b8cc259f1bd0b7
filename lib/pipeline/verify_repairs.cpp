#include "pipeline/verify_repairs.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "eval/evaluate.h"
#include "export/lora_gguf.h"
#include "pipeline/repairs.h"

namespace elastify::pipeline {
namespace {

bool is_zero_or_finite(const HostTensor& tensor, bool zero, int64_t& first_bad, float& value) {
  const HostTensor values = convert(tensor, DType::kF32);
  for (first_bad = 0; first_bad < n_elements(values.shape); ++first_bad) {
    std::memcpy(&value, values.bytes.data() + static_cast<size_t>(first_bad) * sizeof(float), sizeof(float));
    if (zero ? value != 0 : !std::isfinite(value)) return false;
  }
  return true;
}

/// "adapter+bias: 4 adapters of rank 2 to 8, 4 biases"
std::string describe(const LevelRepairs& repairs) {
  int64_t n_adapters = 0, n_biases = 0, least = 0, most = 0;
  for (const LayerRepairs& layer : repairs.layers)
    for (const MatrixRepair* repair : {&layer.attention_out, &layer.down}) {
      n_biases += repair->bias ? 1 : 0;
      if (!repair->a) continue;
      least = n_adapters == 0 ? repair->rank() : std::min(least, repair->rank());
      most = std::max(most, repair->rank());
      ++n_adapters;
    }
  std::vector<std::string> parts;
  if (n_adapters > 0)
    parts.push_back(
        fmt::format("{} adapters of rank {}", n_adapters,
                    least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most)));
  if (n_biases > 0) parts.push_back(fmt::format("{} biases", n_biases));
  if (const int64_t n = repairs.n_own_weights(); n > 0)
    parts.push_back(fmt::format("own weights: {} tensors", n));
  if (repairs.output_norm) parts.emplace_back("own output norm");
  return fmt::format("{}: {}", repairs.compensation,
                     parts.empty() ? "nothing" : fmt::format("{}", fmt::join(parts, ", ")));
}

std::string check_reordered(const fs::path& output, const ModelSpec& spec, const ElasticPlan& plan) {
  std::vector<std::string> found, known;
  for (const Level& level : plan.levels) {
    if (const auto repairs = find_repairs(output, spec, level)) {
      known.push_back(level_name(level.nominal));
      found.push_back(known.back() + ": " + describe(*repairs));
    }
  }
  for (const auto& entry : fs::directory_iterator(output / "repairs"))
    if (const std::string name = entry.path().filename().string();
        std::find(known.begin(), known.end(), name) == known.end())
      fail("{}: the plan has no such level below the full model", entry.path().string());
  return fmt::format("{}", fmt::join(found, "; "));
}

std::string check_artifact(const fs::path& output, const ElasticPlan& plan) {
  std::vector<std::string> found;
  const std::string suffix = fs::exists(output / "full") ? "" : ".gguf";
  for (const Level& level : plan.levels) {
    const std::string name = fs::path(exporter::lora_name(level.nominal)).stem().string() + suffix;
    if (level.nominal >= 1 || !fs::exists(output / name)) continue;
    const Checkpoint model = Checkpoint::open(PlainFiles::of(output, std::nullopt)->file(level.nominal));
    found.push_back(name + ": " + describe(*find_adapter(output, model, level.nominal)));
  }
  return fmt::format("{}", fmt::join(found, "; "));
}

}  // namespace

bool OwnTensors::may_replace(const TensorSpec& tensor) const {
  return (weights && (tensor.role == Role::kAttnOut || tensor.role == Role::kDown)) ||
         (biases && (tensor.role == Role::kAttnOutBias || tensor.role == Role::kDownBias)) ||
         (norm && tensor.role == Role::kOutputNorm);
}
bool OwnTensors::may_add(const TensorSpec& tensor) const {
  return biases && (tensor.role == Role::kAttnOutBias || tensor.role == Role::kDownBias || is_filler(tensor));
}

bool is_filler(const TensorSpec& tensor) {
  return tensor.role == Role::kGateBias || tensor.role == Role::kUpBias || tensor.role == Role::kQueryBias ||
         tensor.role == Role::kKeyBias || tensor.role == Role::kValueBias;
}

OwnTensors own_tensors(const fs::path& level_file) {
  const std::string held = held_repairs(level_file);
  return {.weights = held.find("baked") != std::string::npos,
          .biases = held.find("bias") != std::string::npos,
          .norm = held.find("norm") != std::string::npos};
}

void check_own_tensor(const TensorSpec& tensor, const HostTensor& found) {
  const bool zero = is_filler(tensor);
  int64_t element = 0;
  float value = 0;
  if (!is_zero_or_finite(found, zero, element, value))
    fail("{}: element {}: expected {}, got {}", tensor.name, element, zero ? "0" : "a finite number", value);
}

bool has_repairs(const fs::path& output, bool artifact) {
  if (!artifact) return fs::exists(output / "repairs");
  return std::any_of(fs::directory_iterator(output), fs::directory_iterator(),
                     [](const auto& entry) { return entry.path().filename().string().starts_with("lora-"); });
}

std::string check_repairs(const fs::path& output, bool artifact, const ModelSpec& spec,
                          const ElasticPlan& plan) {
  return artifact ? check_artifact(output, plan) : check_reordered(output, spec, plan);
}

double repaired_logit_difference(const Checkpoint& full, const Checkpoint& level_file, const OwnTensors& own,
                                 const Level& level, const VerifyOptions& options,
                                 const nn::DecoderOptions& compute) {
  const ModelSpec& spec = full.spec();
  const ModelSpec& narrow = level_file.spec();
  const nn::Decoder whole(full, compute), part(level_file, compute);
  LevelRepairs repairs{.nominal = level.nominal, .compensation = "baked+bias", .layers = {}};
  repairs.layers.resize(static_cast<size_t>(spec.n_layers));
  for (const RepairPlace& place : repair_places(repairs, spec, level.widths))
    if (own.weights)
      place.repair->weight =
          level_file.load(static_cast<size_t>(narrow.find(place.tensor->name)), DType::kF32);
  nn::LevelRepair repair = to_level_repair(repairs, whole);
  if (own.norm) repair.output_norm = part.output_norm();
  for (int64_t l = 0; own.biases && l < spec.n_layers; ++l) {
    for (const Site site : {Site::kAttnOut, Site::kFfnDown}) {
      const at::Tensor with = part.projection_bias(l, site), without = whole.projection_bias(l, site);
      if (with.defined())
        repair.layers[static_cast<size_t>(l)][nn::projection_role(site)].bias =
            without.defined() ? with.sub(without) : with;
    }
  }
  nn::ForwardOptions forward;
  forward.widths = &level.widths;
  forward.repairs = &repair;
  const int64_t n_tokens = std::min({options.tokens, spec.max_seq, narrow.max_seq});
  return eval::logit_difference(whole, part, n_tokens, static_cast<uint64_t>(options.seed), forward);
}

}  // namespace elastify::pipeline
