#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <random>

#include "model/repair.h"
#include "pipeline/reorder_model.h"
#include "pipeline/repairs.h"
#include "plan/make_plan.h"
#include "support/decoders.h"
#include "support/tensors.h"

namespace elastify::test {

/// The repairs that levels get.
struct NoisyParts {
  bool adapters = false, biases = false, weights = false, norm = false;
  /// Repair all seven matrices and, with `norm`, the norms of all layers, instead of only o, down and the
  /// output norm.
  bool everywhere = false;
};

/// Repairs of noise for a level. Fitted repairs could be so small that they hide faults.
inline LevelRepairs noisy_repairs(const ModelSpec& spec, const Level& level, const NoisyParts& parts) {
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  const auto noise = [&](Shape shape, float scale, float mean = 0) {
    std::vector<float> values(static_cast<size_t>(n_elements(shape)));
    for (float& value : values) value = mean + scale * normal(random);
    return tensor_of(values, std::move(shape));
  };
  auto compensation = Compensation::kNone;
  if (parts.adapters) compensation |= Compensation::kAdapter;
  if (parts.biases) compensation |= Compensation::kBias;
  if (parts.weights) compensation |= Compensation::kBaked;
  if (parts.norm) compensation |= Compensation::kNorm;
  LevelRepairs repairs = empty_repairs(spec, level.nominal, compensation);
  int64_t rank = 3;
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    const bool is_output = tensor->role == Role::kAttnOut || tensor->role == Role::kDown;
    if (!parts.everywhere && !is_output) continue;
    const Shape shape = shape_at(*tensor, level.widths);
    TensorRepair& repair = repairs.at(*tensor);
    if (!is_layer_matrix(tensor->role)) {
      if (parts.norm) repair.weight = noise(shape, 0.2F, 1);
      continue;
    }
    if (parts.adapters && rank > 0) {
      repair.a = noise({rank, shape[1]}, 0.2F);
      repair.b = noise({shape[0], rank}, 0.2F);
    }
    if (parts.biases && rank != 2) repair.bias = noise({shape[0]}, 0.3F);
    if (parts.weights) repair.weight = noise(shape, 0.2F);
    rank = (rank + 3) % 4;  // 3, 2, 1, none
  }
  if (parts.norm) repairs.output_norm = noise({spec.d_model}, 0.2F, 1);
  return repairs;
}

/// A tiny model reordered at random, with repairs of its levels, and an export of it.
class RepairedFixture {
 public:
  RepairedFixture(const ModelSpec& spec, plan::Method method, const NoisyParts& parts) {
    write_tiny_hf_model(spec, model(), 1);
    pipeline::RunConfig config;
    config.seed = 7;
    config.reorder.metric = Metric::kRandom;
    plan::PlanOptions& planning = config.reorder.plan;
    planning.method = method;
    planning.levels = {0.6, 0.8, 1.0};
    planning.anchor_share = 0.5;
    planning.grid = spec.d_ff() % 128 == 0 ? 32 : 8;  // 32: rows are whole blocks of q8_0
    const Profile profile = made_up_profile(spec);
    std::optional<ElasticPlan> searched;
    if (method == plan::Method::kDp) searched = plan::make_plan(spec, &profile, planning);
    const ElasticPlan plan = pipeline::write_reordered(pipeline::open_model(model(), {}), {&profile}, config,
                                                       reordered(), false, searched ? &*searched : nullptr);
    for (const Level& level : plan.levels)
      if (level.nominal < 1)
        save_repairs(noisy_repairs(spec, level, parts), spec, level,
                     repairs_directory(reordered(), level.nominal));
  }
  void export_as(DType type, DType adapter_type = DType::kF32) const {
    exporter::ExportOptions options;
    options.types = {type};
    options.adapter_type = adapter_type;
    pipeline::write_artifact(reordered(), options, nlohmann::ordered_json::object(), artifact(), true);
  }

  fs::path model() const { return directory_.path() / "model"; }
  fs::path reordered() const { return directory_.path() / "reordered"; }
  fs::path artifact() const { return directory_.path() / "artifact"; }

 private:
  /// Later layers count more, and so do the first units of all spaces.
  static Profile made_up_profile(const ModelSpec& spec) {
    Profile profile;
    profile.spec_hash = spec_hash(spec);
    for (int64_t layer = 0; layer < spec.n_layers; ++layer)
      profile.removal_loss.push_back(static_cast<double>(layer));
    for (const AxisSpace& space : spec.spaces) {
      auto& scores = profile.importance[Metric::kTaylor].emplace_back();
      for (int64_t unit = 0; unit < space.n_units; ++unit)
        scores.push_back(static_cast<float>(space.layer + 1) / static_cast<float>(unit + 1));
    }
    return profile;
  }

  TemporaryDirectory directory_;
};

/// Logits at a level with the repairs that belong to it, [T, V].
inline at::Tensor repaired_logits(const fs::path& path, double level, const at::Tensor& ids,
                                  bool with_repairs = true) {
  const c10::NoGradGuard no_gradients;
  const pipeline::OpenModel model = pipeline::open_model(path, {}, level);
  const nn::Decoder decoder(model.checkpoint, {});
  const pipeline::AppliedRepairs repairs = pipeline::repairs_of(path, level, model, decoder, with_repairs);
  nn::ForwardOptions options;
  if (model.plan) options.widths = &find_level(*model.plan, level).widths;
  options.repairs = repairs.pointer();
  return decoder.logits(decoder.hidden(ids, options)).squeeze(0);
}

}  // namespace elastify::test
