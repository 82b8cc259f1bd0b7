#include "export/level_repairs.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/error.h"

namespace elastify::exporter {
namespace {

bool is_down(Role role) {
  return role == Role::kDown || role == Role::kDownBias;
}
bool is_matrix(Role role) {
  return role == Role::kAttnOut || role == Role::kDown;
}
bool is_bias(Role role) {
  return role == Role::kAttnOutBias || role == Role::kDownBias;
}

const MatrixRepair& part_of(const LayerRepairs& layer, Role role) {
  return is_down(role) ? layer.down : layer.attention_out;
}

/// Files say of all layers at once whether they have biases.
bool any_bias(const LevelRepairs& repairs, Role role) {
  return std::any_of(repairs.layers.begin(), repairs.layers.end(),
                     [&](const LayerRepairs& layer) { return part_of(layer, role).bias.has_value(); });
}

Role bias_role(Role matrix) {
  return matrix == Role::kDown ? Role::kDownBias : Role::kAttnOutBias;
}

bool adds_bias(const ModelSpec& spec, const TensorSpec& tensor, const LevelRepairs& repairs) {
  return is_matrix(tensor.role) && n_elements(tensor.shape) > 0 && any_bias(repairs, tensor.role) &&
         spec.find(bias_role(tensor.role), tensor.layer) < 0;
}

std::string gguf_bias_name(const TensorSpec& matrix) {
  return matrix.gguf_name.substr(0, matrix.gguf_name.rfind('.')) + ".bias";
}

HostTensor sum(const HostTensor& a, const HostTensor& b) {
  HostTensor result = HostTensor::allocate(DType::kF32, a.shape);
  const std::span<std::byte> target = result.writable();
  for (size_t i = 0; i < target.size(); i += sizeof(float)) {
    float left = 0, right = 0;
    std::memcpy(&left, a.bytes.data() + i, sizeof(float));
    std::memcpy(&right, b.bytes.data() + i, sizeof(float));
    left += right;
    std::memcpy(target.data() + i, &left, sizeof(float));
  }
  return result;
}

}  // namespace

std::string held_in_file(const LevelRepairs& repairs) {
  std::vector<std::string_view> held;
  if (repairs.n_own_weights() > 0) held.emplace_back("baked");
  if (repairs.has_biases()) held.emplace_back("bias");
  if (repairs.output_norm) held.emplace_back("norm");
  return fmt::format("{}", fmt::join(held, "+"));
}

ModelSpec with_biases(ModelSpec model, const LevelRepairs& repairs) {
  if (!repairs.has_biases()) return model;
  if (model.qk_norm)
    throw Error(
        fmt::format(
            "compensation '{}': no architecture of stock llama.cpp has both norms on q and k and biases",
            repairs.compensation),
        "reorder with --compensate adapter or baked, which need no biases");
  std::vector<TensorSpec> tensors;
  for (const TensorSpec& tensor : model.tensors) {
    tensors.push_back(tensor);
    if (adds_bias(model, tensor, repairs))
      tensors.push_back({.role = bias_role(tensor.role),
                         .layer = tensor.layer,
                         .name = bias_name(tensor),
                         .gguf_name = gguf_bias_name(tensor),
                         .shape = {tensor.shape[0]},
                         .axes = {AxisUse{}}});
  }
  model.tensors = std::move(tensors);
  model.attn_out_bias |= any_bias(repairs, Role::kAttnOut);
  model.mlp_bias |= any_bias(repairs, Role::kDown);
  return model;
}

std::optional<HostTensor> added_bias(const ModelSpec& spec, const TensorSpec& matrix,
                                     const LevelRepairs& repairs) {
  if (!adds_bias(spec, matrix, repairs)) return std::nullopt;
  const MatrixRepair& repair = part_of(repairs.layers[static_cast<size_t>(matrix.layer)], matrix.role);
  return repair.bias ? *repair.bias : HostTensor::allocate(DType::kF32, {matrix.shape[0]});
}

bool is_replaced(const TensorSpec& tensor, const LevelRepairs& repairs) {
  if (tensor.role == Role::kOutputNorm) return repairs.output_norm.has_value();
  if (!is_matrix(tensor.role) && !is_bias(tensor.role)) return false;
  const MatrixRepair& repair = part_of(repairs.layers[static_cast<size_t>(tensor.layer)], tensor.role);
  return is_matrix(tensor.role) ? repair.weight.has_value() : repair.bias.has_value();
}

std::optional<HostTensor> replaced(const TensorSpec& tensor, const HostTensor& bias,
                                   const LevelRepairs& repairs, DType type, const float* importance) {
  if (!is_replaced(tensor, repairs)) return std::nullopt;
  if (tensor.role == Role::kOutputNorm) return convert(*repairs.output_norm, type);
  const MatrixRepair& repair = part_of(repairs.layers[static_cast<size_t>(tensor.layer)], tensor.role);
  return is_matrix(tensor.role) ? convert(*repair.weight, type, importance) : sum(bias, *repair.bias);
}

}  // namespace elastify::exporter
