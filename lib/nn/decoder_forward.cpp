#include <torch/torch.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "nn/attention.h"
#include "nn/decoder_state.h"
#include "nn/kernels.h"

namespace elastify::nn {
namespace {

constexpr int64_t kLogitBytes = int64_t{8} << 20;  ///< of a piece of logits: about what stays in a cache
constexpr int64_t kLossRows = 1024;                ///< positions per walk over the vocabulary

/// nll_and_gradient() for autograd: the gradient is worked out on the way there.
class NllOfHidden : public torch::autograd::Function<NllOfHidden> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& targets, const at::Tensor& output) {
    const auto [nll, gradient] = nll_and_gradient(rows, targets, output);
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

const TensorRepair* repair_of(const ForwardOptions& options, int64_t layer, Role role) {
  return options.repairs != nullptr ? options.repairs->find(layer, role) : nullptr;
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto wide = x.to(at::kFloat);
  const auto factor = at::rsqrt(wide.square().mean(-1, true) + eps);
  return (wide * factor).to(x.scalar_type()) * weight;
}

at::Tensor Buffer::get(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  if (!storage_.defined() || storage_.numel() < rows * columns)
    storage_ = at::empty({rows * columns}, options);
  return storage_.narrow(0, 0, rows * columns).view({rows, columns});
}

void linear_into(at::Tensor out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (bias.defined())
    at::addmm_out(out, bias, x, weight.t());
  else
    at::mm_out(out, x, weight.t());
}

std::pair<at::Tensor, at::Tensor> nll_and_gradient(const at::Tensor& rows, const at::Tensor& targets,
                                                   const at::Tensor& output) {
  // Slabs of equal size: the rest would be a thin, slow product.
  const int64_t most = std::max<int64_t>(1, 4 * kLogitBytes / (output.size(0) * 4));
  const int64_t n_slabs = (rows.size(0) + most - 1) / most;
  const int64_t slab = (rows.size(0) + n_slabs - 1) / std::max<int64_t>(1, n_slabs);
  at::Tensor nll = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat));
  at::Tensor gradient = at::empty_like(rows);
  Buffer buffer;
  for (int64_t first = 0; first < rows.size(0); first += slab) {
    const int64_t n = std::min(slab, rows.size(0) - first);
    at::Tensor logits = buffer.get(n, output.size(0), rows.options());
    at::mm_out(logits, rows.narrow(0, first, n), output.t());
    logits = logits.to(at::kFloat);
    at::Tensor slab_targets, target_logits;
    if (targets.defined()) {
      slab_targets = targets.narrow(0, first, n).unsqueeze(1);
      target_logits = logits.gather(1, slab_targets).squeeze(1);
    }
    at::Tensor log_sums;
    if (is_fused(logits)) {
      log_sums = softmax_rows(logits);
    } else {
      log_sums = at::logsumexp(logits, 1);
      logits.sub_(log_sums.unsqueeze(1)).exp_();
    }
    nll.narrow(0, first, n).copy_(targets.defined() ? log_sums - target_logits : log_sums);
    if (targets.defined()) logits.scatter_add_(1, slab_targets, logits.new_full({n, 1}, -1));
    at::Tensor part = gradient.narrow(0, first, n);
    at::mm_out(part, logits.to(rows.scalar_type()), output);
  }
  return {nll, gradient};
}

at::Tensor Decoder::State::apply_mask(const at::Tensor& x, size_t space, const ForwardOptions& options,
                                      bool in_place) const {
  if (options.unit_masks == nullptr || !(*options.unit_masks)[space].defined()) return x;
  const at::Tensor& mask = (*options.unit_masks)[space];
  const int64_t n_units = mask.size(-1);
  if (mask.dim() != 2 || mask.size(0) != x.size(0) || n_units == 0 || x.size(2) % n_units != 0)
    fail("unit mask of {}: expected [{}, units], got {}", spec.spaces[space].name, x.size(0),
         to_string(mask.sizes().vec()));
  auto by_unit = x.view({x.size(0), x.size(1), n_units, -1});
  const auto factors = mask.to(x.device(), x.scalar_type()).view({x.size(0), 1, n_units, 1});
  return (in_place ? by_unit.mul_(factors) : by_unit * factors).view(x.sizes());
}

std::pair<at::Tensor, at::Tensor> Decoder::State::append(KvCache& cache, int64_t layer, const at::Tensor& k,
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

void Decoder::State::add_projection(int64_t l, Site site, const at::Tensor& residual, const at::Tensor& input,
                                    const ForwardOptions& options, at::Tensor result) const {
  const Role role = projection_role(site);
  const Role bias = site == Site::kFfnDown ? Role::kDownBias : Role::kAttnOutBias;
  const TensorRepair* repair = repair_of(options, l, role);
  const bool replaced = repair != nullptr && repair->weight.defined();
  at::addmm_out(result, residual, input,
                (replaced ? repair->weight : layer_weight(l, role, options.widths)).t());
  if (const at::Tensor b = layer_weight(l, bias, options.widths); b.defined()) result.add_(b);
  if (repair != nullptr && repair->a.defined()) result.addmm_(at::mm(input, repair->a.t()), repair->b.t());
  if (repair != nullptr && repair->bias.defined()) result.add_(repair->bias);
}

void Decoder::State::run(int64_t l, const at::Tensor& x, const ForwardOptions& options, KvCache* cache,
                         Workspace& workspace, LayerTrace* trace) const {
  const bool attends = options.half != Half::kMlp && has_half(spec.attention_space(l), options.widths);
  const bool has_mlp = options.half != Half::kAttention && has_half(spec.mlp_space(l), options.widths);
  if (attends || has_mlp) require(l);
  const auto weight = [&](Role role) { return layer_weight(l, role, options.widths); };
  const int64_t n_batch = x.size(0), n_tokens = x.size(1), n_rows = n_batch * n_tokens;
  const auto heads = [&](const at::Tensor& rows) {
    return rows.view({n_batch, n_tokens, -1, spec.head_dim});
  };
  const auto by_sequence = [&](const at::Tensor& rows) { return rows.view({n_batch, n_tokens, -1}); };
  // What a trace keeps has memory of its own.
  const auto space_for = [&](Buffer& buffer, int64_t columns) {
    return trace != nullptr ? at::empty({n_rows, columns}, x.options())
                            : buffer.get(n_rows, columns, x.options());
  };
  const at::Tensor norm = workspace.norm.get(n_rows, spec.d_model, x.options());
  const auto project = [&](Buffer& buffer, Role role, Role bias) {
    const at::Tensor matrix = weight(role);
    const at::Tensor out = space_for(buffer, matrix.size(0));
    linear_into(out, norm, matrix, weight(bias));
    return out;
  };
  const auto add_projected = [&](const at::Tensor& residual, const at::Tensor& input, Site site) {
    if (!options.projects) return residual;
    const at::Tensor result = trace != nullptr ? at::empty_like(residual) : residual;  // else in place
    add_projection(l, site, residual, input, options, result);
    return result;
  };

  at::Tensor stream = x.view({n_rows, spec.d_model});
  if (trace != nullptr) {
    trace->input = x;
    trace->q = trace->k = trace->v = at::empty({n_batch, n_tokens, 0, spec.head_dim}, x.options());
    trace->attention = trace->gate = trace->up = at::empty({n_batch, n_tokens, 0}, x.options());
  }
  if (attends) {
    rms_norm_rows(stream, weight(Role::kAttnNorm), spec.norm_eps, norm);
    const at::Tensor q = project(workspace.query, Role::kQuery, Role::kQueryBias);
    const at::Tensor k = project(workspace.key, Role::kKey, Role::kKeyBias);
    const at::Tensor v = project(workspace.value, Role::kValue, Role::kValueBias);
    if (trace != nullptr && spec.qk_norm) {
      trace->raw_q = q.clone();
      trace->raw_k = k.clone();
    }
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
    const at::Tensor mixed = space_for(workspace.attention, q.size(1));
    attend_into(heads(mixed).transpose(1, 2), heads(q).transpose(1, 2), all_keys, all_values,
                spec.sliding_window, scale);
    apply_mask(by_sequence(mixed), spec.attention_space(l), options, true);
    stream = add_projected(stream, mixed, Site::kAttnOut);
    if (trace != nullptr) {
      trace->q = heads(q);
      trace->k = heads(k);
      trace->v = heads(v);
      trace->attention = by_sequence(mixed);
    }
  }
  if (trace != nullptr) trace->middle = by_sequence(stream);
  if (has_mlp) {
    rms_norm_rows(stream, weight(Role::kFfnNorm), spec.norm_eps, norm);
    const at::Tensor gate = project(workspace.gate, Role::kGate, Role::kGateBias);
    const at::Tensor up = project(workspace.up, Role::kUp, Role::kUpBias);
    const at::Tensor units = trace != nullptr ? workspace.gate.get(n_rows, gate.size(1), x.options()) : gate;
    silu_multiply(gate, up, units);
    apply_mask(by_sequence(units), spec.mlp_space(l), options, true);
    stream = add_projected(stream, units, Site::kFfnDown);
    if (trace != nullptr) {
      trace->gate = by_sequence(gate);
      trace->up = by_sequence(up);
    }
  }
  if (trace != nullptr) trace->output = by_sequence(stream);
}

at::Tensor Decoder::State::run_differentiable(int64_t l, const at::Tensor& x, const ForwardOptions& options,
                                              KvCache* cache) const {
  const bool attends = options.half != Half::kMlp && has_half(spec.attention_space(l), options.widths);
  const bool has_mlp = options.half != Half::kAttention && has_half(spec.mlp_space(l), options.widths);
  if (attends || has_mlp) require(l);
  const auto weight = [&](Role role) { return layer_weight(l, role, options.widths); };
  const int64_t n_batch = x.size(0), n_tokens = x.size(1);
  const auto rows = [](const at::Tensor& y) { return y.reshape({-1, y.size(-1)}); };
  const auto projected = [&](const at::Tensor& activations, Role role, Role bias) {
    const TensorRepair* repair = repair_of(options, l, role);
    const bool replaced = repair != nullptr && repair->weight.defined();
    at::Tensor y = linear(rows(activations), replaced ? repair->weight : weight(role), weight(bias));
    if (repair != nullptr && repair->a.defined())
      y = y + at::mm(at::mm(rows(activations), repair->a.t()), repair->b.t());
    if (repair != nullptr && repair->bias.defined()) y = y + repair->bias;
    return y.view(x.sizes());
  };

  at::Tensor stream = x;
  if (attends) {
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
    stream = stream + projected(mixed, Role::kAttnOut, Role::kAttnOutBias);
  }
  if (!has_mlp) return stream;
  const at::Tensor input = rows(rms_norm(stream, weight(Role::kFfnNorm), spec.norm_eps));
  at::Tensor units = at::silu(linear(input, weight(Role::kGate), weight(Role::kGateBias))) *
                     linear(input, weight(Role::kUp), weight(Role::kUpBias));
  units = apply_mask(units.view({n_batch, n_tokens, -1}), spec.mlp_space(l), options, false);
  return stream + projected(units, Role::kDown, Role::kDownBias);
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
      if (is_fused(logits)) {
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

}  // namespace elastify::nn
