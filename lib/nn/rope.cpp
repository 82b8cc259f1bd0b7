#include "nn/rope.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

namespace elastify::nn {

RopeTable::RopeTable(const LayerSpec& layer, int64_t head_dim, c10::Device device) : device_(device) {
  const std::vector<float> divisors = rope_frequency_divisors(layer, head_dim);
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double exponent = 2 * static_cast<double>(i) / static_cast<double>(head_dim);
    frequencies_.push_back(static_cast<float>(std::pow(layer.rope_theta, -exponent)) / divisors[i]);
  }
}

std::pair<at::Tensor, at::Tensor> RopeTable::at_positions(int64_t first, int64_t n) const {
  const std::scoped_lock lock(mutex_);
  if (const int64_t have = cosines_.defined() ? cosines_.size(0) : 0; have < first + n) {
    // The table outlives the caller's inference mode. Tensors made in inference mode do not work outside of
    // it.
    const c10::InferenceMode not_inference(false);
    const auto positions = at::arange(std::max(first + n, 2 * have), at::TensorOptions().dtype(at::kFloat));
    const auto angles = at::outer(positions, at::tensor(frequencies_));
    cosines_ = angles.cos().to(device_);
    sines_ = angles.sin().to(device_);
  }
  return {cosines_.narrow(0, first, n), sines_.narrow(0, first, n)};
}

}  // namespace elastify::nn
