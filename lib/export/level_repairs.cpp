#include "export/level_repairs.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace elastify::exporter {
namespace {

bool is_query_key_value(Role matrix) {
  return matrix == Role::kQuery || matrix == Role::kKey || matrix == Role::kValue;
}

/// Whether some layer's repairs have a bias of this matrix. The level's file then has it in all layers.
bool any_bias(const LevelRepairs& repairs, Role matrix) {
  return std::any_of(repairs.layers.begin(), repairs.layers.end(), [&](const LayerRepairs& layer) {
    return std::any_of(layer.begin(), layer.end(), [&](const auto& entry) {
      const auto& [role, repair] = entry;
      const bool together = role == matrix || (is_query_key_value(role) && is_query_key_value(matrix));
      return together && repair.bias.has_value();
    });
  });
}

bool adds_bias(const ModelSpec& spec, const TensorSpec& tensor, const LevelRepairs& repairs) {
  return is_layer_matrix(tensor.role) && n_elements(tensor.shape) > 0 && any_bias(repairs, tensor.role) &&
         spec.find(bias_of(tensor.role), tensor.layer) < 0;
}

/// The level's own weight or bias for a tensor of the model; null: none.
const HostTensor* own_values(const TensorSpec& tensor, const LevelRepairs& repairs) {
  if (tensor.role == Role::kOutputNorm) return repairs.output_norm ? &*repairs.output_norm : nullptr;
  const std::optional<Role> matrix = matrix_of(tensor.role);
  const TensorRepair* repair = repairs.find(tensor.layer, matrix.value_or(tensor.role));
  if (repair == nullptr) return nullptr;
  const std::optional<HostTensor>& values = matrix ? repair->bias : repair->weight;
  return values ? &*values : nullptr;
}

HostTensor in_order(const HostTensor& tensor, Role role, int64_t head_dim, RopeOrder rope) {
  return is_rotary(role) ? reorder_rope_rows(tensor, head_dim, RopeOrder::kHalves, rope) : tensor;
}

/// Adds the leading elements of `wide` to `addend`, both f32.
/// \param wide  at least as long as `addend`
HostTensor sum(const HostTensor& wide, const HostTensor& addend) {
  HostTensor result = HostTensor::allocate(DType::kF32, addend.shape);
  const std::span<std::byte> target = result.writable();
  for (size_t i = 0; i < target.size(); i += sizeof(float)) {
    float left = 0, right = 0;
    std::memcpy(&left, wide.bytes.data() + i, sizeof(float));
    std::memcpy(&right, addend.bytes.data() + i, sizeof(float));
    left += right;
    std::memcpy(target.data() + i, &left, sizeof(float));
  }
  return result;
}

std::string gguf_bias_name(const TensorSpec& matrix) {
  return matrix.gguf_name.substr(0, matrix.gguf_name.rfind('.')) + ".bias";
}

}  // namespace

bool is_own_by_default(Role role, Compensation held) {
  switch (role) {
    case Role::kAttnOut:
    case Role::kDown:
      return has(held, Compensation::kBaked);
    case Role::kAttnOutBias:
    case Role::kDownBias:
      return has(held, Compensation::kBias);
    case Role::kOutputNorm:
      return has(held, Compensation::kNorm);
    default:
      return false;
  }
}

Compensation held_in_file(const LevelRepairs& repairs) {
  return without(repairs.parts(), Compensation::kAdapter);
}

std::vector<const TensorSpec*> listed_tensors(const ModelSpec& model, const LevelRepairs& repairs) {
  const Compensation held = held_in_file(repairs);
  std::vector<const TensorSpec*> listed;
  for (const TensorSpec& tensor : model.tensors)
    if (is_replaced(tensor, repairs) && !is_own_by_default(tensor.role, held)) listed.push_back(&tensor);
  return listed;
}

ModelSpec with_biases(ModelSpec model, const LevelRepairs& repairs) {
  if (!has(repairs.parts(), Compensation::kBias)) return model;
  if (model.qk_norm)
    throw Error(
        fmt::format(
            "compensation '{}': no architecture of stock llama.cpp has both norms on q and k and biases",
            name_of(repairs.compensation)),
        "reorder with --compensate adapter or baked, which need no biases");
  std::vector<TensorSpec> tensors;
  for (const TensorSpec& tensor : model.tensors) {
    tensors.push_back(tensor);
    if (adds_bias(model, tensor, repairs))
      tensors.push_back({.role = bias_of(tensor.role),
                         .layer = tensor.layer,
                         .name = bias_name(tensor),
                         .gguf_name = gguf_bias_name(tensor),
                         .shape = {tensor.shape[0]},
                         .axes = {tensor.axes[0]}});
  }
  model.tensors = std::move(tensors);
  model.qkv_bias |= any_bias(repairs, Role::kQuery);
  model.attn_out_bias |= any_bias(repairs, Role::kAttnOut);
  for (const Role role : {Role::kGate, Role::kUp, Role::kDown}) model.mlp_bias |= any_bias(repairs, role);
  return model;
}

std::optional<HostTensor> added_bias(const ModelSpec& spec, const TensorSpec& matrix, const Widths& widths,
                                     const LevelRepairs& repairs, RopeOrder rope) {
  if (!adds_bias(spec, matrix, repairs)) return std::nullopt;
  const TensorRepair* repair = repairs.find(matrix.layer, matrix.role);
  if (repair == nullptr || !repair->bias)
    return HostTensor::allocate(DType::kF32, {shape_at(matrix, widths)[0]});
  return in_order(*repair->bias, matrix.role, spec.head_dim, rope);
}

bool is_replaced(const TensorSpec& tensor, const LevelRepairs& repairs) {
  return own_values(tensor, repairs) != nullptr;
}

std::optional<HostTensor> replaced(const ModelSpec& spec, const TensorSpec& tensor, const HostTensor& bias,
                                   const LevelRepairs& repairs, const Encoding& encoding) {
  const HostTensor* own = own_values(tensor, repairs);
  if (own == nullptr) return std::nullopt;
  const HostTensor ordered = in_order(*own, tensor.role, spec.head_dim, encoding.rope);
  if (matrix_of(tensor.role)) return sum(bias, ordered);
  return convert(ordered, encoding.type, encoding.importance);
}

}  // namespace elastify::exporter
