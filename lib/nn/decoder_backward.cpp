#include <torch/torch.h>

#include "base/error.h"
#include "nn/attention.h"
#include "nn/decoder_state.h"
#include "nn/kernels.h"
#include "nn/torch_error.h"

namespace elastify::nn {
namespace {

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

/// Hands on the gradients of y = x W^T + b.
void give_weight_gradients(const WeightGradientSink& sink, Role role, Role bias, const at::Tensor& has_bias,
                           const at::Tensor& grad_y, const at::Tensor& x) {
  if (!sink) return;
  sink(role, at::mm(grad_y.t(), x).to(at::kFloat));
  if (has_bias.defined()) sink(bias, grad_y.sum(0, false, at::kFloat));
}

}  // namespace

LayerTrace Decoder::trace(int64_t index, const at::Tensor& x, const ForwardOptions& options) const {
  return with_torch_errors([&] {
    state_->check_pass(x.size(1), options, nullptr);
    state_->check_layer(index);
    const c10::NoGradGuard no_gradients;
    Workspace workspace;
    LayerTrace trace;
    state_->run(index, x.contiguous(), options, nullptr, workspace, &trace);
    return trace;
  });
}

at::Tensor Decoder::site_input(int64_t index, Site site, const LayerTrace& trace) const {
  const c10::NoGradGuard no_gradients;
  state_->require(index);
  if (site == Site::kAttnOut) return trace.attention;
  const bool down = site == Site::kFfnDown, attention = site == Site::kAttnInput;
  if (down && trace.gate.size(-1) == 0) return trace.gate;
  const at::Tensor& source = down ? trace.gate : attention ? trace.input : trace.middle;
  at::Tensor result = at::empty_like(source);
  if (down) {
    silu_multiply(trace.gate, trace.up, result);
    return result;
  }
  const at::Tensor weight =
      state_->layer_weight(index, attention ? Role::kAttnNorm : Role::kFfnNorm, nullptr);
  if (!weight.defined()) return result.narrow(2, 0, 0);
  rms_norm_rows(source, weight, state_->spec.norm_eps, result);
  return result;
}

LayerGradients Decoder::backward(int64_t index, LayerTrace trace, const at::Tensor& grad_output,
                                 const WeightGradientSink& sink) const {
  return with_torch_errors([&] {
    const State& state = *state_;
    const ModelSpec& spec = state.spec;
    state.check_layer(index);
    if (trace.attention.size(-1) == 0 || trace.gate.size(-1) == 0)
      throw Error(fmt::format("layer {}: there is no way back through {} heads and {} neurons", index,
                              trace.q.size(2), trace.gate.size(-1)),
                  "take gradients on the full model");
    state.require(index);
    const c10::NoGradGuard no_gradients;
    const auto weight = [&](Role role) { return state.layer_weight(index, role, nullptr); };
    const int64_t n_batch = trace.input.size(0), n_tokens = trace.input.size(1);
    const auto by_sequence = [&](const at::Tensor& rows) { return rows.view({n_batch, n_tokens, -1}); };
    const at::Tensor grad_out = rows_of(grad_output);
    LayerGradients result;

    // down, silu(gate) * up, gate, up
    if (sink)
      sink(Role::kDown,
           at::mm(grad_out.t(), rows_of(site_input(index, Site::kFfnDown, trace))).to(at::kFloat));
    at::Tensor grad_units = at::mm(grad_out, weight(Role::kDown));
    result.mlp_masks = silu_multiply_backward(trace.gate, trace.up, by_sequence(grad_units));
    grad_units.reset();
    const at::Tensor grad_gate = rows_of(trace.gate), grad_up = rows_of(trace.up);
    const at::Tensor middle = rows_of(trace.middle), input = rows_of(trace.input);
    at::Tensor norm = at::empty_like(middle);
    if (sink) {
      rms_norm_rows(middle, weight(Role::kFfnNorm), spec.norm_eps, norm);
      give_weight_gradients(sink, Role::kGate, Role::kGateBias, weight(Role::kGateBias), grad_gate, norm);
      give_weight_gradients(sink, Role::kUp, Role::kUpBias, weight(Role::kUpBias), grad_up, norm);
    }
    at::Tensor grad_norm = at::mm(grad_gate, weight(Role::kGate));
    grad_norm.addmm_(grad_up, weight(Role::kUp));
    at::Tensor grad_middle = grad_out.clone();
    rms_norm_backward_rows(middle, weight(Role::kFfnNorm), spec.norm_eps, grad_norm, grad_middle);

    // o, attention
    const at::Tensor mixed = rows_of(trace.attention);
    if (sink) sink(Role::kAttnOut, at::mm(grad_middle.t(), mixed).to(at::kFloat));
    const at::Tensor grad_mixed = at::mm(grad_middle, weight(Role::kAttnOut));
    result.attention_masks = sum_products(trace.attention, by_sequence(grad_mixed));
    const auto by_head = [&](const at::Tensor& x) { return x.transpose(1, 2); };
    const auto attention =
        attend_backward(by_head(trace.q), by_head(trace.k), by_head(trace.v), spec.sliding_window,
                        state.scale, by_head(grad_mixed.view(trace.q.sizes())));
    const auto [cosine, sine] = state.rope_table(0, n_tokens);
    // Back through the rotation and the q/k norms, to what came out of the projections.
    const auto unrotated = [&](const at::Tensor& by_heads, const at::Tensor& raw, Role norm_role) {
      const at::Tensor grad = by_heads.transpose(1, 2).contiguous();  // [B, T, heads, head_dim]
      rotate_heads(grad, cosine, -sine);
      const at::Tensor rows = grad.view({n_batch * n_tokens, -1});
      if (!raw.defined()) return rows;
      const at::Tensor before = at::zeros_like(rows);
      rms_norm_backward_rows(raw.view({-1, spec.head_dim}), weight(norm_role), spec.norm_eps,
                             rows.view({-1, spec.head_dim}), before.view({-1, spec.head_dim}));
      return before;
    };
    const at::Tensor grad_q = unrotated(attention.q, trace.raw_q, Role::kQueryNorm);
    const at::Tensor grad_k = unrotated(attention.k, trace.raw_k, Role::kKeyNorm);
    const at::Tensor grad_v = attention.v.transpose(1, 2).reshape({n_batch * n_tokens, -1});
    if (sink) {
      rms_norm_rows(input, weight(Role::kAttnNorm), spec.norm_eps, norm);
      give_weight_gradients(sink, Role::kQuery, Role::kQueryBias, weight(Role::kQueryBias), grad_q, norm);
      give_weight_gradients(sink, Role::kKey, Role::kKeyBias, weight(Role::kKeyBias), grad_k, norm);
      give_weight_gradients(sink, Role::kValue, Role::kValueBias, weight(Role::kValueBias), grad_v, norm);
    }
    at::mm_out(grad_norm, grad_q, weight(Role::kQuery));
    grad_norm.addmm_(grad_k, weight(Role::kKey));
    grad_norm.addmm_(grad_v, weight(Role::kValue));
    rms_norm_backward_rows(input, weight(Role::kAttnNorm), spec.norm_eps, grad_norm, grad_middle);
    result.input = by_sequence(grad_middle);
    return result;
  });
}

Decoder::Loss Decoder::loss_and_gradient(const at::Tensor& last_output, const at::Tensor& ids) const {
  return with_torch_errors([&] {
    const State& state = *state_;
    state.check_ids(ids);
    const c10::NoGradGuard no_gradients;
    const int64_t n_batch = ids.size(0), n_predicted = ids.size(1) - 1, d_model = state.spec.d_model;
    const at::Tensor x = rows_of(last_output);
    at::Tensor norm = at::empty_like(x);
    rms_norm_rows(x, state.output_norm(), state.spec.norm_eps, norm);
    // The last position of every sequence predicts nothing.
    const at::Tensor rows =
        norm.view({n_batch, -1, d_model}).narrow(1, 0, n_predicted).reshape({-1, d_model});
    const at::Tensor targets = ids.to(state.device).narrow(1, 1, n_predicted).reshape({-1});
    const auto [nll, gradient] = nll_and_gradient(rows, targets, state.output_weight());
    norm.zero_();
    norm.view({n_batch, -1, d_model})
        .narrow(1, 0, n_predicted)
        .copy_(gradient.view({n_batch, n_predicted, d_model}));
    Loss loss{nll.view({n_batch, n_predicted}).sum(1, false, at::kDouble), at::zeros_like(x)};
    rms_norm_backward_rows(x, state.output_norm(), state.spec.norm_eps, norm, loss.gradient);
    loss.gradient = loss.gradient.view(last_output.sizes());
    return loss;
  });
}

}  // namespace elastify::nn
