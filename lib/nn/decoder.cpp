#include "nn/decoder.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "nn/decoder_state.h"
#include "nn/host_tensor.h"
#include "nn/kernels.h"
#include "nn/torch_compat.h"
#include "nn/torch_error.h"

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

}  // namespace

c10::Device device_named(const std::string& name) {
  c10::Device device(c10::kCPU);
  try {
    device = c10::Device(name);
  } catch (const std::exception&) {
    throw UsageError(fmt::format("device: unknown device '{}'", name), "one of cpu, cuda, cuda:1");
  }
  if (device.is_cuda() && !torch::cuda::is_available())
    throw UsageError(fmt::format("device: '{}' is not available: this LibTorch finds no CUDA device", name),
                     "use --device cpu");
  if (!device.is_cpu() && !device.is_cuda())
    throw UsageError(fmt::format("device: '{}' is not supported", name), "one of cpu, cuda, cuda:1");
  return device;
}

Decoder::State::State(const Checkpoint& source, const DecoderOptions& options)
    : spec(source.spec()),
      checkpoint(source),
      device(device_named(options.device)),
      dtype(parse_dtype(options.dtype, device)),
      streamed(options.streamed),
      scale(1 / std::sqrt(static_cast<double>(spec.head_dim))),
      layers(static_cast<size_t>(spec.n_layers)) {
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    if (streamed && tensor.role != Role::kOutputNorm) continue;
    auto& weights = tensor.layer < 0 ? outer : layers[static_cast<size_t>(tensor.layer)];
    weights[static_cast<size_t>(tensor.role)] = load(i);
  }
  checkpoint.release_pages();
  const std::vector<float> divisors = rope_frequency_divisors(spec);
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double exponent = 2 * static_cast<double>(i) / static_cast<double>(spec.head_dim);
    frequencies.push_back(static_cast<float>(std::pow(spec.rope_theta, -exponent)) / divisors[i]);
  }
}

at::Tensor Decoder::State::load(size_t index) const {
  // In place where the source holds what the computation wants.
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
    const at::Tensor norm = output_norm();
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

bool Decoder::State::has_half(size_t space, const Widths* widths) const {
  return (widths != nullptr ? (*widths)[space] : spec.spaces[space].n_units) > 0;
}

at::Tensor Decoder::State::embed(const at::Tensor& ids) const {
  if (const at::Tensor& table = outer[static_cast<size_t>(Role::kTokenEmbedding)]; table.defined())
    return at::embedding(table, ids.to(device));
  // Only the rows that are asked for.
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

std::pair<at::Tensor, at::Tensor> Decoder::State::rope_table(int64_t first, int64_t n) const {
  const std::scoped_lock lock(rope_mutex);
  if (const int64_t have = cosines.defined() ? cosines.size(0) : 0; have < first + n) {
    const c10::InferenceMode not_inference(false);
    const auto positions = at::arange(std::max(first + n, 2 * have), at::TensorOptions().dtype(at::kFloat));
    const auto angles = at::outer(positions, at::tensor(frequencies));
    cosines = angles.cos().to(device);
    sines = angles.sin().to(device);
  }
  return {cosines.narrow(0, first, n), sines.narrow(0, first, n)};
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
  if (options.repairs != nullptr && static_cast<int64_t>(options.repairs->layers.size()) != spec.n_layers)
    fail("repairs: expected {}, one per layer, got {}", spec.n_layers, options.repairs->layers.size());
  if (options.repairs != nullptr)
    for (const LayerRepair& layer : options.repairs->layers)
      for (const auto& [role, repair] : layer)
        if (role != Role::kAttnOut && role != Role::kDown)
          fail("repairs: only o and down have repairs, got one of role {}", static_cast<int>(role));
  if (options.unit_masks != nullptr && options.unit_masks->size() != spec.spaces.size())
    fail("unit masks: expected {}, one per space, got {}", spec.spaces.size(), options.unit_masks->size());
}

void Decoder::State::check_layer(int64_t layer) const {
  if (layer < 0 || layer >= spec.n_layers)
    fail("layer {} is out of range: the model has {}", layer, spec.n_layers);
}

bool Decoder::State::wants_gradient(const at::Tensor& x, const ForwardOptions& options) const {
  if (!c10::GradMode::is_enabled()) return false;
  if (x.requires_grad()) return true;
  return options.unit_masks != nullptr &&
         std::any_of(options.unit_masks->begin(), options.unit_masks->end(),
                     [](const at::Tensor& mask) { return mask.defined() && mask.requires_grad(); });
}

Decoder::Decoder(const Checkpoint& checkpoint, const DecoderOptions& options) {
  with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    state_ = std::make_unique<State>(checkpoint, options);
  });
}

Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

const ModelSpec& Decoder::spec() const {
  return state_->spec;
}
c10::Device Decoder::device() const {
  return state_->device;
}
c10::ScalarType Decoder::dtype() const {
  return state_->dtype;
}
bool Decoder::is_streamed() const {
  return state_->streamed;
}

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  return with_torch_errors([&] {
    state_->check_ids(ids);
    return state_->embed(ids);
  });
}

at::Tensor Decoder::layer(int64_t index, const at::Tensor& x, const ForwardOptions& options,
                          KvCache* cache) const {
  return with_torch_errors([&] {
    state_->check_pass(x.size(1), options, cache);
    state_->check_layer(index);
    if (state_->wants_gradient(x, options)) return state_->run_differentiable(index, x, options, cache);
    const c10::NoGradGuard no_gradients;
    Workspace workspace;
    const at::Tensor result = x.clone(at::MemoryFormat::Contiguous);
    state_->run(index, result, options, cache, workspace, nullptr);
    return result;
  });
}

at::Tensor Decoder::projection(int64_t index, Site site, const Widths& widths) const {
  state_->check_layer(index);
  state_->require(index);
  const at::Tensor view = state_->layer_weight(index, projection_role(site), &widths);
  if (view.defined()) return view;
  return at::empty({state_->spec.d_model, 0},
                   at::TensorOptions().dtype(state_->dtype).device(state_->device));
}

at::Tensor Decoder::projection_bias(int64_t index, Site site) const {
  state_->check_layer(index);
  state_->require(index);
  return state_->layer_weight(index, site == Site::kFfnDown ? Role::kDownBias : Role::kAttnOutBias, nullptr);
}

at::Tensor Decoder::add_projection(int64_t index, Site site, const at::Tensor& residual,
                                   const at::Tensor& input, const ForwardOptions& options) const {
  return with_torch_errors([&] {
    state_->check_layer(index);
    state_->require(index);
    const c10::NoGradGuard no_gradients;
    const at::Tensor result = at::empty_like(residual);
    const auto rows = [](const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); };
    state_->add_projection(index, site, rows(residual), rows(input), options, rows(result));
    return result;
  });
}

at::Tensor Decoder::final_norm(const at::Tensor& x, const ForwardOptions& options) const {
  return with_torch_errors([&] {
    const bool is_own = options.repairs != nullptr && options.repairs->output_norm.defined();
    const at::Tensor& weight = is_own ? options.repairs->output_norm : state_->output_norm();
    if (state_->wants_gradient(x, {})) return rms_norm(x, weight, state_->spec.norm_eps);
    const c10::NoGradGuard no_gradients;
    at::Tensor result = at::empty(x.sizes(), x.options());
    rms_norm_rows(x.contiguous(), weight, state_->spec.norm_eps, result);
    return result;
  });
}

at::Tensor Decoder::hidden(const at::Tensor& ids, const ForwardOptions& options, KvCache* cache) const {
  return with_torch_errors([&] {
    at::Tensor x = embed(ids);
    state_->check_pass(ids.size(1), options, cache);
    const bool differentiable = state_->wants_gradient(x, options);
    const c10::AutoGradMode gradients(differentiable);
    Workspace workspace;
    for (int64_t l = 0; l < state_->spec.n_layers; ++l) {
      if (l == options.skip_layer) continue;
      if (differentiable)
        x = state_->run_differentiable(l, x, options, cache);
      else
        state_->run(l, x, options, cache, workspace, nullptr);
    }
    if (cache != nullptr) cache->length += ids.size(1);
    return final_norm(x, options);
  });
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  return with_torch_errors([&] {
    auto shape = hidden.sizes().vec();
    const at::Tensor rows = hidden.reshape({-1, shape.back()});
    shape.back() = state_->spec.n_vocab;
    return at::mm(rows, state_->output_weight().t()).view(shape);
  });
}

at::Tensor Decoder::output_norm() const {
  return state_->output_norm();
}

at::Tensor Decoder::output_weight() const {
  return state_->output_weight();
}

Decoder::Partition Decoder::partition(const at::Tensor& hidden) const {
  return with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    auto [log_sum, mean] = nll_and_gradient(hidden, at::Tensor(), state_->output_weight());
    return Partition{std::move(log_sum), std::move(mean)};
  });
}

at::Tensor Decoder::token_nll(const at::Tensor& hidden, const at::Tensor& ids) const {
  return with_torch_errors([&] {
    state_->check_ids(ids);
    const int64_t n_batch = ids.size(0), n_predicted = ids.size(1) - 1;
    if (hidden.dim() != 3 || hidden.size(0) != n_batch || hidden.size(1) != n_predicted + 1)
      fail("hidden states {} do not belong to token ids {}", to_string(hidden.sizes().vec()),
           to_string(ids.sizes().vec()));
    const at::Tensor rows = hidden.narrow(1, 0, n_predicted).reshape({n_batch * n_predicted, hidden.size(2)});
    const at::Tensor targets = ids.to(state_->device).narrow(1, 1, n_predicted).reshape({-1});
    return state_->rows_nll(rows, targets).view({n_batch, n_predicted});
  });
}

at::Tensor Decoder::sequence_nll(const at::Tensor& ids, const ForwardOptions& options) const {
  return with_torch_errors([&] { return token_nll(hidden(ids, options), ids).sum(1, false, at::kDouble); });
}

}  // namespace elastify::nn
