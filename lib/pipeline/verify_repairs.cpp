#include "pipeline/verify_repairs.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "eval/evaluate.h"
#include "export/lora_gguf.h"
#include "pipeline/repairs.h"
#include "recover/level_repairs.h"

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
  int64_t n_adapters = 0, n_biases = 0, n_weights = 0, least = 0, most = 0;
  for (const LayerRepairs& layer : repairs.layers)
    for (const auto& [role, repair] : layer) {
      n_weights += repair.weight ? 1 : 0;
      n_biases += repair.bias ? 1 : 0;
      if (!repair.a) continue;
      least = n_adapters == 0 ? repair.rank() : std::min(least, repair.rank());
      most = std::max(most, repair.rank());
      ++n_adapters;
    }
  std::vector<std::string> parts;
  if (n_adapters > 0)
    parts.push_back(
        fmt::format("{} adapters of rank {}", n_adapters,
                    least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most)));
  if (n_biases > 0) parts.push_back(fmt::format("{} biases", n_biases));
  if (n_weights > 0) parts.push_back(fmt::format("own weights: {} tensors", n_weights));
  if (repairs.output_norm) parts.emplace_back("own output norm");
  return fmt::format("{}: {}", name_of(repairs.compensation),
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

/// The level's bias minus the full model's, because the forward pass adds both.
HostTensor added_to(const HostTensor& full, const HostTensor& level) {
  HostTensor added = HostTensor::allocate(DType::kF32, level.shape);
  const auto* from = reinterpret_cast<const float*>(full.bytes.data());
  const auto* sum = reinterpret_cast<const float*>(level.bytes.data());
  auto* target = reinterpret_cast<float*>(added.writable().data());
  for (int64_t i = 0; i < n_elements(level.shape); ++i) target[i] = sum[i] - from[i];
  return added;
}

/// A level file's own tensors as repairs of the full model.
LevelRepairs own_repairs(const Checkpoint& full, const Checkpoint& level_file, const OwnTensors& own,
                         const Level& level) {
  const ModelSpec& spec = full.spec();
  LevelRepairs repairs = empty_repairs(spec, level.nominal);
  for (size_t i = 0; i < level_file.spec().tensors.size(); ++i) {
    const TensorSpec& tensor = level_file.spec().tensors[i];
    if (!own.may_replace(tensor)) continue;
    HostTensor values = level_file.load(i, DType::kF32);
    if (tensor.role == Role::kOutputNorm) {
      repairs.output_norm = std::move(values);
    } else if (const auto matrix = matrix_of(tensor.role)) {
      const int64_t index = spec.find(tensor.role, tensor.layer);
      repairs.layers[static_cast<size_t>(tensor.layer)][*matrix].bias =
          index < 0 ? values : added_to(full.load(static_cast<size_t>(index), DType::kF32), values);
    } else {
      repairs.at(tensor).weight = std::move(values);
    }
  }
  return repairs;
}

}  // namespace

bool OwnTensors::may_replace(const TensorSpec& tensor) const {
  const auto is_listed = [&](const std::string& name) {
    return name == tensor.name || name == tensor.gguf_name;
  };
  return exporter::is_own_by_default(tensor.role, held_.parts) ||
         std::any_of(held_.own_tensors.begin(), held_.own_tensors.end(), is_listed);
}
bool OwnTensors::may_add(const TensorSpec& tensor) const {
  return has(held_.parts, Compensation::kBias) && matrix_of(tensor.role).has_value();
}
bool OwnTensors::is_filler(const TensorSpec& tensor) const {
  return may_add(tensor) && !may_replace(tensor);
}

OwnTensors own_tensors(const fs::path& level_file) {
  return OwnTensors(held_repairs(level_file));
}

void check_own_tensor(const TensorSpec& tensor, const HostTensor& found, bool is_filler) {
  int64_t element = 0;
  float value = 0;
  if (!is_zero_or_finite(found, is_filler, element, value))
    fail("{}: element {}: expected {}, got {}", tensor.name, element, is_filler ? "0" : "a finite number",
         value);
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
  const nn::LevelRepair repairs = recover::to_tensors(own_repairs(full, level_file, own, level), whole);
  nn::ForwardOptions forward;
  forward.widths = &level.widths;
  forward.repairs = &repairs;
  const int64_t n_tokens = std::min({options.tokens, spec.max_seq, narrow.max_seq});
  return eval::logit_difference(whole, part, n_tokens, static_cast<uint64_t>(options.seed), forward);
}

}  // namespace elastify::pipeline
