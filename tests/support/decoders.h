#pragma once

#include <ATen/ATen.h>

// Included after LibTorch, whose logging defines a CHECK of its own.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "model/checkpoint.h"
#include "model/permutation.h"
#include "nn/decoder.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

namespace elastify::test {

inline Checkpoint tiny_checkpoint(const ModelSpec& spec, uint64_t seed = 1) {
  const TemporaryDirectory directory;  // the files stay mapped
  write_tiny_hf_model(spec, directory.path(), seed);
  return Checkpoint::open(directory.path());
}

/// The model at these widths as a model of its own. Its tensors hold no more than these widths need.
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

/// Masks of one for every space, [n_batch, n_units].
inline std::vector<at::Tensor> unit_masks(const ModelSpec& spec, int64_t n_batch, bool with_gradient) {
  std::vector<at::Tensor> masks;
  for (const AxisSpace& space : spec.spaces)
    masks.push_back(torch::ones({n_batch, space.n_units}).requires_grad_(with_gradient));
  return masks;
}

}  // namespace elastify::test
