#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "model/repair.h"
#include "pipeline/repairs.h"
#include "support/decoders.h"

namespace elastify::test {

/// Repairs of everything that a level keeps, of noise: what fits would be near enough to nothing to hide
/// faults.
inline LevelRepairs noisy_repairs(const ModelSpec& spec, const Level& level, bool adapters, bool biases,
                                  bool weights, bool norm = false) {
  torch::manual_seed(11);
  nn::LevelRepair fitted;
  fitted.layers.resize(static_cast<size_t>(spec.n_layers));
  LevelRepairs shape{.nominal = level.nominal, .compensation = "", .layers = {}};
  shape.layers.resize(fitted.layers.size());
  int64_t rank = 3;
  for (const RepairPlace& place : repair_places(shape, spec, level.widths)) {
    nn::TensorRepair& repair = fitted.layers[static_cast<size_t>(place.tensor->layer)][place.tensor->role];
    const Shape matrix = shape_at(*place.tensor, level.widths);
    if (adapters && rank > 0) {
      repair.a = torch::randn({rank, matrix[1]}) * 0.2;
      repair.b = torch::randn({matrix[0], rank}) * 0.2;
    }
    if (biases && rank != 2) repair.bias = torch::randn({matrix[0]}) * 0.3;
    if (weights) repair.weight = torch::randn({matrix[0], matrix[1]}) * 0.2;
    rank = (rank + 3) % 4;  // 3, 2, 1, none
  }
  if (norm) fitted.output_norm = torch::rand({spec.d_model}) + 0.5;
  std::string name = weights ? "baked" : adapters ? "adapter" : "";
  if (biases) name += name.empty() ? "bias" : "+bias";
  if (norm) name += name.empty() ? "norm" : "+norm";
  return pipeline::to_level_repairs(fitted, spec, level, name);
}

/// A tiny model reordered at random, with repairs of its levels, and what is exported of it.
class RepairedFixture {
 public:
  RepairedFixture(const ModelSpec& spec, plan::Method method, bool adapters, bool biases, bool weights,
                  bool norm = false) {
    write_tiny_hf_model(spec, model(), 1);
    pipeline::ReorderSection options;
    options.metric = Metric::kRandom;
    options.plan.method = method;
    options.plan.levels = {0.6, 0.8, 1.0};
    options.plan.anchor_share = 0.5;
    options.plan.grid = 8;
    Profile profile;
    profile.spec_hash = spec_hash(spec);
    for (int64_t layer = 0; layer < spec.n_layers; ++layer)
      profile.removal_loss.push_back(static_cast<double>(layer));
    const ElasticPlan plan = pipeline::write_reordered(pipeline::open_model(model(), {}), &profile, nullptr,
                                                       options, 7, reordered(), false);
    for (const Level& level : plan.levels)
      if (level.nominal < 1)
        save_repairs(noisy_repairs(spec, level, adapters, biases, weights, norm), spec, level,
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
