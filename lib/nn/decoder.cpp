#include "nn/decoder.h"

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "nn/attention.h"
#include "nn/host_tensor.h"
#include "nn/kernels.h"
#include "nn/torch_compat.h"
#include "nn/torch_error.h"

namespace elastify::nn {
namespace {

constexpr size_t kRoles = static_cast<size_t>(Role::kDownBias) + 1;
constexpr int64_t kLogitBytes = int64_t{8} << 20;  ///< of a piece of logits: about what stays in a cache
constexpr int64_t kLossRows = 1024;                ///< positions per walk over the vocabulary

/// A tensor of the model and how its axes are made of units.
struct Weight {
  at::Tensor tensor;
  std::vector<AxisUse> axes;
};
using Weights = std::array<Weight, kRoles>;

c10::Device parse_device(const std::string& name) {
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

/// In place where the source holds what the computation wants, converted otherwise.
at::Tensor load_weight(const Checkpoint& checkpoint, size_t index, c10::Device device, c10::ScalarType type) {
  const bool in_place = checkpoint.stored_dtype(index) == stored_type(type);
  const HostTensor source = in_place ? checkpoint.load(index) : checkpoint.load(index, DType::kF32);
  return as_tensor(source).to(device, type);
}

/// One of the large intermediate results of a forward pass, kept from layer to layer.
class Buffer {
 public:
  at::Tensor get(int64_t rows, int64_t columns, const at::TensorOptions& options) {
    if (!storage_.defined() || storage_.numel() < rows * columns)
      storage_ = at::empty({rows * columns}, options);
    return storage_.narrow(0, 0, rows * columns).view({rows, columns});
  }

 private:
  at::Tensor storage_;
};

struct Workspace {
  Buffer norm, query, key, value, attention, gate, up;
};

/// -log p of targets given the hidden states of their positions, with the gradient of the hidden states
/// worked out on the way, slab by slab, so that no logits are kept.
class NllOfHidden : public torch::autograd::Function<NllOfHidden> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& targets, const at::Tensor& output) {
    const int64_t slab = std::max<int64_t>(1, 8 * kLogitBytes / (output.size(0) * 4));
    at::Tensor nll = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat));
    at::Tensor gradient = at::empty_like(rows);
    for (int64_t first = 0; first < rows.size(0); first += slab) {
      const int64_t n = std::min(slab, rows.size(0) - first);
      at::Tensor logits = at::mm(rows.narrow(0, first, n), output.t()).to(at::kFloat);
      const at::Tensor slab_targets = targets.narrow(0, first, n).unsqueeze(1);
      const at::Tensor target_logits = logits.gather(1, slab_targets).squeeze(1);
      at::Tensor log_sums;
      if (logits.is_cpu()) {
        log_sums = softmax_rows(logits);
      } else {
        log_sums = at::logsumexp(logits, 1);
        logits.sub_(log_sums.unsqueeze(1)).exp_();
      }
      nll.narrow(0, first, n).copy_(log_sums - target_logits);
      logits.scatter_add_(1, slab_targets, logits.new_full({n, 1}, -1));
      at::Tensor part = gradient.narrow(0, first, n);
      at::mm_out(part, logits.to(rows.scalar_type()), output);
    }
    context->save_for_backward({gradient});
    return nll;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list upstream) {
    const at::Tensor gradient = context->get_saved_variables()[0];
    return {gradient * upstream[0].to(gradient.scalar_type()).unsqueeze(1), at::Tensor(), at::Tensor()};
  }
};

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
}

void linear_out(at::Tensor out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (bias.defined())
    at::addmm_out(out, bias, x, weight.t());
  else
    at::mm_out(out, x, weight.t());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto wide = x.to(at::kFloat);
  const auto factor = at::rsqrt(wide.square().mean(-1, true) + eps);
  return (wide * factor).to(x.scalar_type()) * weight;
}

}  // namespace

struct Decoder::State {
  ModelSpec spec;
  c10::Device device{c10::kCPU};
  c10::ScalarType dtype = at::kFloat;
  Weights outer;
  std::vector<Weights> layers;
  double scale = 1;  ///< of attention scores
  std::vector<float> frequencies;
  mutable std::mutex rope_mutex;
  mutable at::Tensor cosines, sines;  ///< float32 [positions so far, head_dim / 2]

  at::Tensor outer_weight(Role role) const { return outer[static_cast<size_t>(role)].tensor; }

  at::Tensor output_weight() const {
    return spec.tied ? outer_weight(Role::kTokenEmbedding) : outer_weight(Role::kOutput);
  }

  /// The leading part at these widths, as a view; undefined where the model has no such tensor.
  at::Tensor layer_weight(int64_t layer, Role role, const Widths* widths) const {
    const Weight& weight = layers[static_cast<size_t>(layer)][static_cast<size_t>(role)];
    at::Tensor view = weight.tensor;
    if (widths == nullptr || !view.defined()) return view;
    for (size_t axis = 0; axis < weight.axes.size(); ++axis)
      if (const AxisUse& use = weight.axes[axis]; use.space >= 0)
        view =
            view.narrow(static_cast<int64_t>(axis), 0, (*widths)[static_cast<size_t>(use.space)] * use.block);
    return view;
  }

  /// Cosines and sines of positions [first, first + n).
  std::pair<at::Tensor, at::Tensor> rope_table(int64_t first, int64_t n) const {
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

  void check_ids(const at::Tensor& ids) const {
    if (ids.scalar_type() != at::kLong || ids.dim() != 2 || ids.numel() == 0)
      fail("token ids: expected int64 [batch, tokens], got {} {}", c10::toString(ids.scalar_type()),
           to_string(ids.sizes().vec()));
    const auto lowest = ids.min().item<int64_t>(), highest = ids.max().item<int64_t>();
    if (lowest < 0 || highest >= spec.n_vocab)
      throw Error(fmt::format("token id {} is out of range: the model has {} tokens",
                              lowest < 0 ? lowest : highest, spec.n_vocab),
                  "is this the model's own tokenizer?");
  }

  /// Everything that must hold before layers run on T tokens.
  void check_pass(int64_t n_tokens, const ForwardOptions& options, const KvCache* cache) const {
    const int64_t past = cache != nullptr ? cache->length : 0;
    if (spec.max_seq > 0 && past + n_tokens > spec.max_seq)
      throw Error(
          fmt::format("a sequence of {} tokens is longer than the model's {}", past + n_tokens, spec.max_seq),
          "use shorter sequences");
    if (options.widths != nullptr) check_widths(spec, *options.widths);
    if (options.unit_masks != nullptr && options.unit_masks->size() != spec.spaces.size())
      fail("unit masks: expected {}, one per space, got {}", spec.spaces.size(), options.unit_masks->size());
  }

  const at::Tensor* mask_of(size_t space, const ForwardOptions& options) const {
    if (options.unit_masks == nullptr || !(*options.unit_masks)[space].defined()) return nullptr;
    return &(*options.unit_masks)[space];
  }

  /// Multiplies a space's mask onto activations [B, T, units * block]; in place or not.
  at::Tensor apply_mask(const at::Tensor& x, size_t space, const ForwardOptions& options,
                        bool in_place) const {
    const at::Tensor* mask = mask_of(space, options);
    if (mask == nullptr) return x;
    const int64_t n_units = mask->size(-1);
    if (mask->dim() != 2 || mask->size(0) != x.size(0) || n_units == 0 || x.size(2) % n_units != 0)
      fail("unit mask of {}: expected [{}, units], got {}", spec.spaces[space].name, x.size(0),
           to_string(mask->sizes().vec()));
    auto by_unit = x.view({x.size(0), x.size(1), n_units, -1});
    const auto factors = mask->to(x.device(), x.scalar_type()).view({x.size(0), 1, n_units, 1});
    return (in_place ? by_unit.mul_(factors) : by_unit * factors).view(x.sizes());
  }

  /// Float32 on the CPU and nobody asks for gradients.
  bool runs_fused(const at::Tensor& x, const ForwardOptions& options) const {
    if (!device.is_cpu() || dtype != at::kFloat) return false;
    if (!c10::GradMode::is_enabled()) return true;
    if (x.requires_grad()) return false;
    return options.unit_masks == nullptr ||
           std::none_of(options.unit_masks->begin(), options.unit_masks->end(),
                        [](const at::Tensor& mask) { return mask.defined() && mask.requires_grad(); });
  }

  /// Appends keys and values [B, K, T, head_dim] of a layer; returns all of them so far.
  std::pair<at::Tensor, at::Tensor> append(KvCache& cache, int64_t layer, const at::Tensor& k,
                                           const at::Tensor& v) const {
    const auto l = static_cast<size_t>(layer);
    const int64_t needed = cache.length + k.size(2);
    cache.keys.resize(layers.size());
    cache.values.resize(layers.size());
    const auto put = [&](at::Tensor& store, const at::Tensor& part) {
      if (!store.defined() || store.size(2) < needed) {
        at::Tensor larger = at::empty(
            {part.size(0), part.size(1), std::max(needed, 2 * cache.length), part.size(3)}, part.options());
        if (cache.length > 0) larger.narrow(2, 0, cache.length).copy_(store.narrow(2, 0, cache.length));
        store = larger;
      }
      store.narrow(2, cache.length, part.size(2)).copy_(part);
      return store.narrow(2, 0, needed);
    };
    at::Tensor keys = put(cache.keys[l], k), values = put(cache.values[l], v);
    return {keys, values};
  }

  /// One layer, in place on the residual stream x [B, T, D].
  void run_fused(int64_t l, const at::Tensor& x, const ForwardOptions& options, KvCache* cache,
                 Workspace& workspace) const;
  at::Tensor run_differentiable(int64_t l, const at::Tensor& x, const ForwardOptions& options,
                                KvCache* cache) const;
  at::Tensor rows_nll(const at::Tensor& rows, const at::Tensor& targets) const;
};

void Decoder::State::run_fused(int64_t l, const at::Tensor& x, const ForwardOptions& options, KvCache* cache,
                               Workspace& workspace) const {
  const auto weight = [&](Role role) { return layer_weight(l, role, options.widths); };
  const int64_t n_batch = x.size(0), n_tokens = x.size(1), n_rows = n_batch * n_tokens;
  at::Tensor residual = x.view({n_rows, spec.d_model});
  const at::Tensor norm = workspace.norm.get(n_rows, spec.d_model, x.options());

  rms_norm_rows(residual, weight(Role::kAttnNorm), spec.norm_eps, norm);
  const auto project = [&](Buffer& buffer, Role role, Role bias) {
    const at::Tensor matrix = weight(role);
    const at::Tensor out = buffer.get(n_rows, matrix.size(0), x.options());
    linear_out(out, norm, matrix, weight(bias));
    return out;
  };
  const at::Tensor q = project(workspace.query, Role::kQuery, Role::kQueryBias);
  const at::Tensor k = project(workspace.key, Role::kKey, Role::kKeyBias);
  const at::Tensor v = project(workspace.value, Role::kValue, Role::kValueBias);
  const auto heads = [&](const at::Tensor& rows) {
    return rows.view({n_batch, n_tokens, -1, spec.head_dim});
  };
  const auto [cosine, sine] = rope_table(cache != nullptr ? cache->length : 0, n_tokens);
  for (const auto& [rows, norm_role] : {std::pair{q, Role::kQueryNorm}, std::pair{k, Role::kKeyNorm}}) {
    if (const at::Tensor factors = weight(norm_role); factors.defined()) {
      const at::Tensor flat = rows.view({-1, spec.head_dim});
      rms_norm_rows(flat, factors, spec.norm_eps, flat);
    }
    rotate_heads(heads(rows), cosine, sine);
  }
  at::Tensor all_keys = heads(k).transpose(1, 2), all_values = heads(v).transpose(1, 2);
  if (cache != nullptr) std::tie(all_keys, all_values) = append(*cache, l, all_keys, all_values);
  const at::Tensor mixed = workspace.attention.get(n_rows, q.size(1), x.options());
  attend_blocked(heads(q).transpose(1, 2), all_keys, all_values, spec.sliding_window, scale,
                 heads(mixed).transpose(1, 2));
  apply_mask(mixed.view({n_batch, n_tokens, -1}), spec.attention_space(l), options, true);
  residual.addmm_(mixed, weight(Role::kAttnOut).t());
  if (const at::Tensor bias = weight(Role::kAttnOutBias); bias.defined()) residual.add_(bias);

  rms_norm_rows(residual, weight(Role::kFfnNorm), spec.norm_eps, norm);
  const at::Tensor gate = project(workspace.gate, Role::kGate, Role::kGateBias);
  silu_multiply(gate, project(workspace.up, Role::kUp, Role::kUpBias));
  apply_mask(gate.view({n_batch, n_tokens, -1}), spec.mlp_space(l), options, true);
  residual.addmm_(gate, weight(Role::kDown).t());
  if (const at::Tensor bias = weight(Role::kDownBias); bias.defined()) residual.add_(bias);
}

at::Tensor Decoder::State::run_differentiable(int64_t l, const at::Tensor& x, const ForwardOptions& options,
                                              KvCache* cache) const {
  const auto weight = [&](Role role) { return layer_weight(l, role, options.widths); };
  const int64_t n_batch = x.size(0), n_tokens = x.size(1);
  const auto rows = [](const at::Tensor& y) { return y.reshape({-1, y.size(-1)}); };
  const auto [cosine, sine] = rope_table(cache != nullptr ? cache->length : 0, n_tokens);
  const auto c = cosine.to(dtype), s = sine.to(dtype);

  const at::Tensor norm = rows(rms_norm(x, weight(Role::kAttnNorm), spec.norm_eps));
  /// Heads of a projection, [B, heads, T, head_dim].
  const auto heads = [&](Role role, Role bias) {
    return linear(norm, weight(role), weight(bias))
        .view({n_batch, n_tokens, -1, spec.head_dim})
        .transpose(1, 2);
  };
  const auto rotated = [&](at::Tensor y, Role norm_role) {
    if (const at::Tensor factors = weight(norm_role); factors.defined())
      y = rms_norm(y, factors, spec.norm_eps);
    const auto halves = y.chunk(2, -1);
    return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1);
  };
  const at::Tensor q = rotated(heads(Role::kQuery, Role::kQueryBias), Role::kQueryNorm);
  at::Tensor k = rotated(heads(Role::kKey, Role::kKeyBias), Role::kKeyNorm);
  at::Tensor v = heads(Role::kValue, Role::kValueBias);
  if (cache != nullptr) std::tie(k, v) = append(*cache, l, k, v);
  at::Tensor mixed =
      attend(q, k, v, spec.sliding_window, scale).transpose(1, 2).reshape({n_batch, n_tokens, -1});
  mixed = apply_mask(mixed, spec.attention_space(l), options, false);
  const at::Tensor middle =
      x + linear(rows(mixed), weight(Role::kAttnOut), weight(Role::kAttnOutBias)).view(x.sizes());

  const at::Tensor input = rows(rms_norm(middle, weight(Role::kFfnNorm), spec.norm_eps));
  at::Tensor units = at::silu(linear(input, weight(Role::kGate), weight(Role::kGateBias))) *
                     linear(input, weight(Role::kUp), weight(Role::kUpBias));
  units = apply_mask(units.view({n_batch, n_tokens, -1}), spec.mlp_space(l), options, false);
  return middle + linear(rows(units), weight(Role::kDown), weight(Role::kDownBias)).view(x.sizes());
}

at::Tensor Decoder::State::rows_nll(const at::Tensor& rows, const at::Tensor& targets) const {
  const at::Tensor output = output_weight();
  if (c10::GradMode::is_enabled() && rows.requires_grad()) return NllOfHidden::apply(rows, targets, output);
  const c10::NoGradGuard no_gradients;
  at::Tensor nll = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat));
  Buffer logit_buffer;
  for (int64_t first = 0; first < rows.size(0); first += kLossRows) {
    const int64_t n = std::min(kLossRows, rows.size(0) - first);
    const at::Tensor slab = rows.narrow(0, first, n);
    const at::Tensor slab_targets = targets.narrow(0, first, n);
    at::Tensor maximum = at::full({n}, -std::numeric_limits<float>::infinity(), nll.options());
    at::Tensor sum = at::zeros({n}, nll.options()), target_logits = at::zeros({n}, nll.options());
    const int64_t piece = std::max<int64_t>(1, kLogitBytes / (n * 4));
    for (int64_t v = 0; v < spec.n_vocab; v += piece) {
      const int64_t n_pieces = std::min(piece, spec.n_vocab - v);
      at::Tensor logits = logit_buffer.get(n, n_pieces, rows.options());
      at::mm_out(logits, slab, output.narrow(0, v, n_pieces).t());
      logits = logits.to(at::kFloat);
      const auto inside = slab_targets.ge(v).logical_and(slab_targets.lt(v + n_pieces));
      const auto place = (slab_targets - v).clamp(0, n_pieces - 1).unsqueeze(1);
      target_logits += logits.gather(1, place).squeeze(1) * inside;
      if (logits.is_cpu()) {
        accumulate_log_sum_exp(logits, maximum, sum);
      } else {
        const auto highest = at::maximum(maximum, logits.amax(1));
        sum = sum * (maximum - highest).exp() + (logits - highest.unsqueeze(1)).exp().sum(1);
        maximum = highest;
      }
    }
    nll.narrow(0, first, n).copy_(maximum + sum.log() - target_logits);
  }
  return nll;
}

Decoder::Decoder(const Checkpoint& checkpoint, const DecoderOptions& options)
    : state_(std::make_unique<State>()) {
  with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    State& state = *state_;
    state.spec = checkpoint.spec();
    state.device = parse_device(options.device);
    state.dtype = parse_dtype(options.dtype, state.device);
    state.layers.resize(static_cast<size_t>(state.spec.n_layers));
    state.scale = 1 / std::sqrt(static_cast<double>(state.spec.head_dim));
    for (size_t i = 0; i < state.spec.tensors.size(); ++i) {
      const TensorSpec& tensor = state.spec.tensors[i];
      Weights& weights = tensor.layer < 0 ? state.outer : state.layers[static_cast<size_t>(tensor.layer)];
      weights[static_cast<size_t>(tensor.role)] = {load_weight(checkpoint, i, state.device, state.dtype),
                                                   tensor.axes};
    }
    const std::vector<float> divisors = rope_frequency_divisors(state.spec);
    for (size_t i = 0; i < divisors.size(); ++i) {
      const double exponent = 2 * static_cast<double>(i) / static_cast<double>(state.spec.head_dim);
      state.frequencies.push_back(static_cast<float>(std::pow(state.spec.rope_theta, -exponent)) /
                                  divisors[i]);
    }
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

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  return with_torch_errors([&] {
    state_->check_ids(ids);
    return at::embedding(state_->outer_weight(Role::kTokenEmbedding), ids.to(state_->device));
  });
}

at::Tensor Decoder::layer(int64_t index, const at::Tensor& x, const ForwardOptions& options,
                          KvCache* cache) const {
  return with_torch_errors([&] {
    state_->check_pass(x.size(1), options, cache);
    if (index < 0 || index >= state_->spec.n_layers)
      fail("layer {} is out of range: the model has {}", index, state_->spec.n_layers);
    if (!state_->runs_fused(x, options)) return state_->run_differentiable(index, x, options, cache);
    const c10::NoGradGuard no_gradients;
    Workspace workspace;
    const at::Tensor result = x.clone(at::MemoryFormat::Contiguous);
    state_->run_fused(index, result, options, cache, workspace);
    return result;
  });
}

at::Tensor Decoder::final_norm(const at::Tensor& x) const {
  return with_torch_errors([&] {
    const at::Tensor weight = state_->outer_weight(Role::kOutputNorm);
    if (!state_->runs_fused(x, {})) return rms_norm(x, weight, state_->spec.norm_eps);
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
    const bool fused = state_->runs_fused(x, options);
    const c10::AutoGradMode gradients(!fused && c10::GradMode::is_enabled());
    Workspace workspace;
    for (int64_t l = 0; l < state_->spec.n_layers; ++l) {
      if (l == options.skip_layer) continue;
      if (fused)
        state_->run_fused(l, x, options, cache, workspace);
      else
        x = state_->run_differentiable(l, x, options, cache);
    }
    if (cache != nullptr) cache->length += ids.size(1);
    return final_norm(x);
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
