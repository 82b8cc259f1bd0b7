#pragma once

#include <ATen/ATen.h>

// Included after LibTorch, because LibTorch's logging also defines a CHECK.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "model/checkpoint.h"
#include "model/permutation.h"
#include "nn/decoder.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify::test {

inline Checkpoint tiny_checkpoint(const ModelSpec& spec, uint64_t seed = 1) {
  const TemporaryDirectory directory;  // the files stay mapped
  write_tiny_hf_model(spec, directory.path(), seed);
  return Checkpoint::open(directory.path());
}

/// A tiny model in memory, for a spec that no file format can express.
inline Checkpoint memory_checkpoint(const ModelSpec& spec, uint64_t seed = 1) {
  return Checkpoint(
      "memory", SourceFormat::kHuggingFace, spec, std::vector<DType>(spec.tensors.size(), DType::kF32), {},
      {}, [=](size_t i) { return tensor_of(tiny_weights(spec.tensors[i], seed), spec.tensors[i].shape); });
}

/// The sub-model with these widths as a separate model. Its tensors hold only the kept elements.
inline Checkpoint sliced_checkpoint(const Checkpoint& source, const Widths& widths) {
  const ModelSpec narrow = narrowed(source.spec(), widths);
  std::vector<size_t> places;  // halves of layers may be left out
  for (const TensorSpec& tensor : narrow.tensors)
    places.push_back(static_cast<size_t>(source.spec().find(tensor.name)));
  return Checkpoint(
      source.path(), source.format(), narrow, std::vector<DType>(narrow.tensors.size(), DType::kF32),
      source.files(), {}, [=](size_t i) {
        return slice(source.load(places[i], DType::kF32), source.spec().tensors[places[i]], widths);
      });
}

/// About half of the units of every space, in uneven steps.
inline Widths half_widths(const ModelSpec& spec) {
  Widths widths;
  for (size_t s = 0; s < spec.spaces.size(); ++s)
    widths.push_back(std::max<int64_t>(1, spec.spaces[s].n_units / 2 - static_cast<int64_t>(s) % 3));
  return widths;
}

inline at::Tensor random_ids(int64_t n_batch, int64_t n_tokens, int64_t n_vocab, uint64_t seed = 5) {
  torch::manual_seed(seed);
  return torch::randint(n_vocab, {n_batch, n_tokens}, at::kLong);
}

/// Largest difference over the standard deviation of `expected`.
inline double relative_difference(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor a = found.detach().to(at::kDouble), b = expected.detach().to(at::kDouble);
  return ((a - b).abs().max() / b.std()).item<double>();
}

/// Masks of one for every space, [n_batch, width], for ReferenceDecoder.
inline std::vector<at::Tensor> unit_masks(const Widths& widths, int64_t n_batch, bool with_gradient) {
  std::vector<at::Tensor> masks;
  for (const int64_t width : widths)
    masks.push_back(torch::ones({n_batch, width}, at::kDouble).requires_grad_(with_gradient));
  return masks;
}

/// The seven matrices of a layer.
inline constexpr Role kMatrices[] = {Role::kQuery, Role::kKey, Role::kValue, Role::kAttnOut,
                                     Role::kGate,  Role::kUp,  Role::kDown};
/// All norms that a layer may have.
inline constexpr Role kNorms[] = {Role::kAttnNorm,     Role::kQueryNorm, Role::kKeyNorm,
                                  Role::kAttnPostNorm, Role::kFfnNorm,   Role::kFfnPostNorm};

/// Random repairs that require gradients: adapters of several ranks and biases on all seven matrices of every
/// layer that the widths keep and, if asked for, own weights of these and of all norms.
inline nn::LevelRepair random_repairs(const ModelSpec& spec, const Widths& widths, bool own_weights,
                                      uint64_t seed = 3) {
  torch::manual_seed(seed);
  nn::LevelRepair repairs;
  repairs.layers.resize(static_cast<size_t>(spec.n_layers));
  int64_t rank = 1;
  for (const TensorSpec& tensor : spec.tensors) {
    if (tensor.layer < 0 || !is_kept(spec, tensor, widths)) continue;
    const Shape shape = shape_at(tensor, widths);
    nn::LayerRepair& layer = repairs.layers[static_cast<size_t>(tensor.layer)];
    if (std::find(std::begin(kMatrices), std::end(kMatrices), tensor.role) != std::end(kMatrices)) {
      nn::TensorRepair& repair = layer[tensor.role];
      repair.a = (torch::randn({rank, shape[1]}) * 0.2).requires_grad_();
      repair.b = (torch::randn({shape[0], rank}) * 0.2).requires_grad_();
      repair.bias = (torch::randn({shape[0]}) * 0.2).requires_grad_();
      if (own_weights) repair.weight = (torch::randn(shape) * 0.2).requires_grad_();
      rank = rank % 4 + 1;
    } else if (own_weights &&
               std::find(std::begin(kNorms), std::end(kNorms), tensor.role) != std::end(kNorms)) {
      layer[tensor.role].weight = (torch::rand(shape) + 0.5).requires_grad_();
    }
  }
  if (own_weights) repairs.output_norm = (torch::rand({spec.d_model}) + 0.5).requires_grad_();
  return repairs;
}

}  // namespace elastify::test
