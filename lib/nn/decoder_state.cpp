#include "nn/decoder_state.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "nn/device.h"
#include "nn/host_tensor.h"
#include "nn/torch_compat.h"

namespace elastify::nn {
namespace {

c10::ScalarType parse_dtype(const std::string& name, c10::Device device) {
  if (name == "f32") return at::kFloat;
  if (name == "bf16") return at::kBFloat16;
  if (name != "f16")
    throw UsageError(fmt::format("dtype: unknown compute type '{}'", name), "one of f32, bf16, f16");
  if (device.is_cpu() && !has_half_on_cpu())
    throw UsageError(fmt::format("dtype: LibTorch {} cannot compute in f16 on the CPU", TORCH_VERSION),
                     "use --dtype f32, which is also the fastest there");
  return at::kHalf;
}

DType stored_type(c10::ScalarType type) {
  if (type == at::kHalf) return DType::kF16;
  return type == at::kBFloat16 ? DType::kBF16 : DType::kF32;
}

bool is_output(const ModelSpec& spec, const TensorSpec& tensor) {
  return tensor.role == (spec.tied ? Role::kTokenEmbedding : Role::kOutput);
}

bool can_be_repaired(Role role) {
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
    case Role::kAttnOut:
    case Role::kGate:
    case Role::kUp:
    case Role::kDown:
    case Role::kAttnNorm:
    case Role::kQueryNorm:
    case Role::kKeyNorm:
    case Role::kAttnPostNorm:
    case Role::kFfnNorm:
    case Role::kFfnPostNorm:
      return true;
    default:
      return false;
  }
}

}  // namespace

Decoder::State::State(const Checkpoint& source, const DecoderOptions& options)
    : spec(source.spec()),
      checkpoint(source),
      device(device_named(options.device)),
      dtype(parse_dtype(options.dtype, device)),
      streamed(options.streamed),
      layers(static_cast<size_t>(spec.n_layers)) {
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    if (streamed && tensor.role != Role::kOutputNorm) continue;
    auto& weights = tensor.layer < 0 ? outer : layers[static_cast<size_t>(tensor.layer)];
    weights[static_cast<size_t>(tensor.role)] = load(i);
  }
  checkpoint.release_pages();
  for (size_t l = 0; l < layers.size(); ++l) {
    const auto same = [&](const LayerSpec& other) {
      return other.rope_theta == spec.layers[l].rope_theta && other.rope == spec.layers[l].rope;
    };
    const auto first = std::find_if(spec.layers.begin(), spec.layers.end(), same) - spec.layers.begin();
    if (static_cast<size_t>(first) == l) ropes.emplace_back(spec.layers[l], spec.head_dim, device);
    layer_rope.push_back(static_cast<size_t>(first) == l ? &ropes.back()
                                                         : layer_rope[static_cast<size_t>(first)]);
  }
}

at::Tensor Decoder::State::load(size_t index) const {
  // Weights are used in place if the stored type is the compute type.
  const bool in_place = checkpoint.stored_dtype(index) == stored_type(dtype);
  const HostTensor source = in_place ? checkpoint.load(index) : checkpoint.load(index, DType::kF32);
  return as_tensor(source).to(device, dtype);
}

void Decoder::State::require(int64_t layer) const {
  if (!streamed || resident == layer) return;
  const c10::NoGradGuard no_gradients;
  const auto weights_of = [&](int64_t owner) -> std::array<at::Tensor, kRoles>& {
    return owner == spec.n_layers ? outer : layers[static_cast<size_t>(owner)];
  };
  if (resident >= 0) {
    const at::Tensor norm = outer[static_cast<size_t>(Role::kOutputNorm)];
    weights_of(resident).fill({});
    outer[static_cast<size_t>(Role::kOutputNorm)] = norm;
  }
  resident = -1;
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    if (layer == spec.n_layers ? is_output(spec, tensor) : tensor.layer == layer)
      weights_of(layer)[static_cast<size_t>(tensor.role)] = load(i);
  }
  checkpoint.release_pages();
  resident = layer;
}

at::Tensor Decoder::State::output_weight() const {
  require(spec.n_layers);
  return outer[static_cast<size_t>(spec.tied ? Role::kTokenEmbedding : Role::kOutput)];
}

RmsNorm Decoder::State::output_norm(const LevelRepair* repairs) const {
  TensorRepair own;
  if (repairs != nullptr) own.weight = repairs->output_norm;
  return {Role::kOutputNorm, outer[static_cast<size_t>(Role::kOutputNorm)], spec.norm_eps,
          spec.output_norm_offset, &own};
}

at::Tensor Decoder::State::layer_weight(int64_t layer, Role role, const Widths* widths) const {
  at::Tensor view = layers[static_cast<size_t>(layer)][static_cast<size_t>(role)];
  if (widths == nullptr || !view.defined()) return view;
  const std::vector<AxisUse>& axes = spec.tensors[static_cast<size_t>(spec.find(role, layer))].axes;
  for (size_t axis = 0; axis < axes.size(); ++axis)
    if (const AxisUse& use = axes[axis]; use.space >= 0)
      view =
          view.narrow(static_cast<int64_t>(axis), 0, (*widths)[static_cast<size_t>(use.space)] * use.block);
  return view;
}

at::Tensor Decoder::State::embed(const at::Tensor& ids) const {
  if (const at::Tensor& table = outer[static_cast<size_t>(Role::kTokenEmbedding)]; table.defined())
    return at::embedding(table, ids.to(device));
  // A streamed decoder reads only the rows of these ids.
  const HostTensor table = checkpoint.load(static_cast<size_t>(spec.find(Role::kTokenEmbedding)));
  const size_t row_bytes = table.bytes.size() / static_cast<size_t>(spec.n_vocab);
  HostTensor rows = HostTensor::allocate(table.dtype, {ids.numel(), spec.d_model});
  const at::Tensor flat = ids.to(at::kCPU).contiguous().view({-1});
  std::byte* target = rows.writable().data();
  for (int64_t i = 0; i < flat.numel(); ++i, target += row_bytes)
    std::memcpy(target, table.bytes.data() + static_cast<size_t>(flat.data_ptr<int64_t>()[i]) * row_bytes,
                row_bytes);
  checkpoint.release_pages();
  return as_tensor(convert(rows, DType::kF32)).to(device, dtype).view({ids.size(0), ids.size(1), -1});
}

int64_t Decoder::State::n_units(size_t space, const Widths* widths) const {
  return widths != nullptr ? (*widths)[space] : spec.spaces[space].n_units;
}

bool Decoder::State::attends(int64_t l, const ForwardOptions& options) const {
  return options.half != Half::kMlp && n_units(spec.attention_space(l), options.widths) > 0;
}

bool Decoder::State::has_mlp(int64_t l, const ForwardOptions& options) const {
  return options.half != Half::kAttention && n_units(spec.mlp_space(l), options.widths) > 0;
}

Linear Decoder::State::linear(int64_t l, Role matrix, Role bias, const ForwardOptions& options) const {
  return {{matrix, layer_weight(l, matrix, options.widths)},
          {bias, layer_weight(l, bias, options.widths)},
          options.repairs != nullptr ? options.repairs->find(l, matrix) : nullptr};
}

RmsNorm Decoder::State::norm(int64_t l, Role role, const ForwardOptions& options) const {
  return {role, layer_weight(l, role, options.widths), spec.norm_eps, spec.layer(l).norm_offset,
          options.repairs != nullptr ? options.repairs->find(l, role) : nullptr};
}

Projection Decoder::State::projection(int64_t l, Site site, const ForwardOptions& options) const {
  if (site == Site::kFfnDown)
    return {linear(l, Role::kDown, Role::kDownBias, options), norm(l, Role::kFfnPostNorm, options)};
  return {linear(l, Role::kAttnOut, Role::kAttnOutBias, options), norm(l, Role::kAttnPostNorm, options)};
}

AttentionHalf Decoder::State::attention_half(int64_t l, const ForwardOptions& options) const {
  return {.layer = l,
          .norm = norm(l, Role::kAttnNorm, options),
          .q_norm = norm(l, Role::kQueryNorm, options),
          .k_norm = norm(l, Role::kKeyNorm, options),
          .q = linear(l, Role::kQuery, Role::kQueryBias, options),
          .k = linear(l, Role::kKey, Role::kKeyBias, options),
          .v = linear(l, Role::kValue, Role::kValueBias, options),
          .o = projection(l, Site::kAttnOut, options),
          .head_dim = spec.head_dim,
          .window = spec.layer(l).sliding_window,
          .scale = 1 / std::sqrt(static_cast<double>(spec.head_dim)),
          .rope = layer_rope[static_cast<size_t>(l)]};
}

MlpHalf Decoder::State::mlp_half(int64_t l, const ForwardOptions& options) const {
  return {.norm = norm(l, Role::kFfnNorm, options),
          .gate = linear(l, Role::kGate, Role::kGateBias, options),
          .up = linear(l, Role::kUp, Role::kUpBias, options),
          .down = projection(l, Site::kFfnDown, options),
          .activation = spec.layer(l).activation};
}

void Decoder::State::run(int64_t l, const at::Tensor& x, const ForwardOptions& options, KvCache* cache,
                         Workspace& workspace) const {
  if (!options.projects) return;
  if (attends(l, options)) {
    require(l);
    attention_half(l, options).forward(x, workspace, cache);
  }
  if (has_mlp(l, options)) {
    require(l);
    mlp_half(l, options).forward(x, workspace);
  }
}

void Decoder::State::check_ids(const at::Tensor& ids) const {
  if (ids.scalar_type() != at::kLong || ids.dim() != 2 || ids.numel() == 0)
    fail("token ids: expected int64 [batch, tokens], got {} {}", c10::toString(ids.scalar_type()),
         to_string(ids.sizes().vec()));
  const auto lowest = ids.min().item<int64_t>(), highest = ids.max().item<int64_t>();
  if (lowest < 0 || highest >= spec.n_vocab)
    throw Error(fmt::format("token id {} is out of range: the model has {} tokens",
                            lowest < 0 ? lowest : highest, spec.n_vocab),
                "is this the model's own tokenizer?");
}

void Decoder::State::check_pass(int64_t n_tokens, const ForwardOptions& options, const KvCache* cache) const {
  const int64_t past = cache != nullptr ? cache->length : 0;
  if (spec.max_seq > 0 && past + n_tokens > spec.max_seq)
    throw Error(
        fmt::format("a sequence of {} tokens is longer than the model's {}", past + n_tokens, spec.max_seq),
        "use shorter sequences");
  if (options.widths != nullptr) check_widths(spec, *options.widths);
  if (options.repairs == nullptr) return;
  const std::vector<LayerRepair>& repairs = options.repairs->layers;
  if (static_cast<int64_t>(repairs.size()) != spec.n_layers)
    fail("repairs: expected {}, one per layer, got {}", spec.n_layers, repairs.size());
  for (size_t l = 0; l < repairs.size(); ++l)
    for (const auto& [role, repair] : repairs[l])
      if (!can_be_repaired(role)) fail("repairs of layer {}: its {} cannot be repaired", l, name_of(role));
}

void Decoder::State::check_layer(int64_t layer) const {
  if (layer < 0 || layer >= spec.n_layers)
    fail("layer {} is out of range: the model has {}", layer, spec.n_layers);
}

}  // namespace elastify::nn
