#include "recover/level_repairs.h"

#include <ATen/ATen.h>

#include <cstring>

#include "nn/host_tensor.h"

namespace elastify::recover {
namespace {

std::optional<HostTensor> to_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) return std::nullopt;
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  HostTensor host = HostTensor::allocate(DType::kF32, Shape(values.sizes().begin(), values.sizes().end()));
  std::memcpy(host.writable().data(), values.data_ptr<float>(), host.bytes.size());
  return host;
}

at::Tensor to_tensor(const std::optional<HostTensor>& host, const nn::Decoder& decoder) {
  return host ? nn::as_tensor(*host).to(decoder.device(), decoder.dtype()) : at::Tensor();
}

}  // namespace

LevelRepairs to_host(const nn::LevelRepair& fitted, const ModelSpec& spec, const Level& level,
                     Compensation compensation) {
  LevelRepairs repairs = empty_repairs(spec, level.nominal, compensation);
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    const nn::TensorRepair* found = fitted.find(tensor->layer, tensor->role);
    if (found == nullptr) continue;
    TensorRepair repair{.weight = to_host(found->weight),
                        .a = to_host(found->a),
                        .b = to_host(found->b),
                        .bias = to_host(found->bias)};
    if (!repair.is_empty()) repairs.at(*tensor) = std::move(repair);
  }
  repairs.output_norm = to_host(fitted.output_norm);
  return repairs;
}

nn::LevelRepair to_tensors(const LevelRepairs& repairs, const nn::Decoder& decoder) {
  nn::LevelRepair level{.layers = {}, .output_norm = to_tensor(repairs.output_norm, decoder)};
  for (const LayerRepairs& layer : repairs.layers) {
    nn::LayerRepair& tensors = level.layers.emplace_back();
    for (const auto& [role, repair] : layer) {
      if (repair.is_empty()) continue;
      tensors[role] = {.weight = to_tensor(repair.weight, decoder),
                       .a = to_tensor(repair.a, decoder),
                       .b = to_tensor(repair.b, decoder),
                       .bias = to_tensor(repair.bias, decoder)};
    }
  }
  return level;
}

}  // namespace elastify::recover
