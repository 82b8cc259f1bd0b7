#include "nn/decoder.h"

#include <torch/torch.h>

#include <utility>

#include "base/error.h"
#include "nn/decoder_state.h"
#include "nn/loss.h"
#include "nn/torch_error.h"

namespace elastify::nn {
namespace {

/// [.., n] as [rows, n].
at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

}  // namespace

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
    const c10::NoGradGuard no_gradients;
    Workspace workspace;
    const at::Tensor result = x.clone(at::MemoryFormat::Contiguous);
    state_->run(index, result, options, cache, workspace);
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
    const at::Tensor result = at::empty(residual.sizes(), residual.options());
    state_->projection(index, site, options)
        .add_forward(rows_of(input), rows_of(residual), result.view({-1, result.size(-1)}));
    return result;
  });
}

at::Tensor Decoder::final_norm(const at::Tensor& x, const ForwardOptions& options) const {
  return with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    const at::Tensor result = at::empty(x.sizes(), x.options());
    state_->output_norm(options.repairs).forward(x.contiguous(), result);
    return result;
  });
}

at::Tensor Decoder::hidden(const at::Tensor& ids, const ForwardOptions& options, KvCache* cache) const {
  return with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    const at::Tensor x = embed(ids);
    state_->check_pass(ids.size(1), options, cache);
    Workspace workspace;
    for (int64_t l = 0; l < state_->spec.n_layers; ++l) state_->run(l, x, options, cache, workspace);
    if (cache != nullptr) cache->length += ids.size(1);
    return final_norm(x, options);
  });
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  return with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    auto shape = hidden.sizes().vec();
    const at::Tensor rows = hidden.reshape({-1, shape.back()});
    shape.back() = state_->spec.n_vocab;
    return at::mm(rows, state_->output_weight().t()).view(shape);
  });
}

at::Tensor Decoder::output_norm() const {
  return state_->outer[static_cast<size_t>(Role::kOutputNorm)];
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
    const c10::NoGradGuard no_gradients;
    return nll(rows, targets, state_->output_weight()).view({n_batch, n_predicted});
  });
}

at::Tensor Decoder::sequence_nll(const at::Tensor& ids, const ForwardOptions& options) const {
  return with_torch_errors([&] { return token_nll(hidden(ids, options), ids).sum(1, false, at::kDouble); });
}

LayerTrace Decoder::trace(int64_t index, const at::Tensor& x, const ForwardOptions& options) const {
  return with_torch_errors([&] {
    state_->check_pass(x.size(1), options, nullptr);
    state_->check_layer(index);
    const c10::NoGradGuard no_gradients;
    const State& state = *state_;
    const int64_t n_batch = x.size(0), n_tokens = x.size(1);
    LayerTrace trace;
    trace.input = trace.middle = x.contiguous();
    trace.q = trace.k = trace.v = at::empty({n_batch, n_tokens, 0, state.spec.head_dim}, x.options());
    trace.attention = trace.gate = trace.up = at::empty({n_batch, n_tokens, 0}, x.options());
    if (state.attends(index, options)) {
      state.require(index);
      state.attention_half(index, options).trace(trace.input, options.projects, trace);
    }
    trace.output = trace.middle;
    if (state.has_mlp(index, options)) {
      state.require(index);
      state.mlp_half(index, options).trace(trace.middle, options.projects, trace);
    }
    return trace;
  });
}

at::Tensor Decoder::site_input(int64_t index, Site site, const LayerTrace& trace,
                               const ForwardOptions& options) const {
  return with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    state_->require(index);
    if (site == Site::kAttnOut) return trace.attention;
    if (site == Site::kFfnDown)
      return trace.gate.size(-1) == 0 ? trace.gate : state_->mlp_half(index, options).units(trace);
    const bool attention = site == Site::kAttnInput;
    const at::Tensor& stream = attention ? trace.input : trace.middle;
    const RmsNorm norm = state_->norm(index, attention ? Role::kAttnNorm : Role::kFfnNorm, options);
    const at::Tensor result = at::empty_like(stream);
    if (!norm.defined()) return result.narrow(2, 0, 0);
    norm.forward(stream, result);
    return result;
  });
}

LayerGradients Decoder::backward(int64_t index, LayerTrace trace, const at::Tensor& grad_output,
                                 const ForwardOptions& options, const WeightGradientSink& weights) const {
  return with_torch_errors([&] {
    const State& state = *state_;
    state.check_layer(index);
    state.check_pass(trace.input.size(1), options, nullptr);
    if (!options.projects) fail("layer {}: a trace without o and down has no backward pass", index);
    const c10::NoGradGuard no_gradients;
    const bool attends = state.attends(index, options), has_mlp = state.has_mlp(index, options);
    const ModelSpec& spec = state.spec;
    const int64_t n_groups = attends ? state.n_units(spec.attention_space(index), options.widths) : 0;
    const int64_t n_neurons = has_mlp ? state.n_units(spec.mlp_space(index), options.widths) : 0;
    if (trace.k.size(2) != n_groups || trace.gate.size(2) != n_neurons)
      throw Error(fmt::format("layer {}: the trace has {} kv heads and {} neurons, expected {} and {}", index,
                              trace.k.size(2), trace.gate.size(2), n_groups, n_neurons),
                  "go back with the options that the trace was made with");
    if (attends || has_mlp) state.require(index);
    LayerGradients result;
    const ParameterGradients gradients{weights, result.repairs};
    const at::Tensor grad = rows_of(grad_output).clone(at::MemoryFormat::Contiguous);
    result.attention_masks = result.mlp_masks =
        at::zeros({trace.input.size(0), 0}, grad.options().dtype(at::kDouble));
    if (has_mlp) state.mlp_half(index, options).backward(trace, grad, gradients, result);
    if (attends) state.attention_half(index, options).backward(trace, grad, gradients, result);
    result.input = grad.view(trace.input.sizes());
    return result;
  });
}

Decoder::Loss Decoder::loss_and_gradient(const at::Tensor& last_output, const at::Tensor& ids,
                                         const ForwardOptions& options) const {
  return with_torch_errors([&] {
    const State& state = *state_;
    state.check_ids(ids);
    const c10::NoGradGuard no_gradients;
    const int64_t n_batch = ids.size(0), n_predicted = ids.size(1) - 1, d_model = state.spec.d_model;
    const RmsNorm norm = state.output_norm(options.repairs);
    const at::Tensor x = rows_of(last_output);
    const at::Tensor normed = at::empty_like(x);  // [B * T, D]
    norm.forward(x, normed);
    // The last position of every sequence predicts nothing.
    const auto predicting = [&](const at::Tensor& rows) {
      return rows.view({n_batch, -1, d_model}).narrow(1, 0, n_predicted);
    };
    const at::Tensor targets = ids.to(state.device).narrow(1, 1, n_predicted).reshape({-1});
    const auto [losses, gradient] =
        nll_and_gradient(predicting(normed).reshape({-1, d_model}), targets, state.output_weight());
    const at::Tensor& grad_normed = normed;  // the hidden states are no longer needed
    grad_normed.zero_();
    predicting(grad_normed).copy_(gradient.view({n_batch, n_predicted, d_model}));
    Loss loss{losses.view({n_batch, n_predicted}).sum(1, false, at::kDouble), at::zeros_like(x),
              norm.weight_gradient(x, grad_normed)};
    norm.add_backward(x, grad_normed, loss.gradient);
    loss.gradient = loss.gradient.view(last_output.sizes());
    return loss;
  });
}

}  // namespace elastify::nn
