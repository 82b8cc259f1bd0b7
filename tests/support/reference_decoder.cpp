#include "support/reference_decoder.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "support/tensors.h"

namespace elastify::test {
namespace {

at::Tensor rms_normed(const at::Tensor& x, double eps) {
  return x * at::rsqrt(x.square().mean(-1, true) + eps);
}

at::Tensor own(const nn::TensorRepair* repair, at::Tensor nn::TensorRepair::*part, at::ScalarType type) {
  return repair != nullptr && (repair->*part).defined() ? (repair->*part).to(type) : at::Tensor();
}

}  // namespace

ReferenceDecoder::ReferenceDecoder(const Checkpoint& checkpoint, at::ScalarType type)
    : spec_(checkpoint.spec()), type_(type), layers_(static_cast<size_t>(spec_.n_layers)) {
  for (size_t i = 0; i < spec_.tensors.size(); ++i) {
    const TensorSpec& tensor = spec_.tensors[i];
    auto& place = tensor.layer < 0 ? outer_ : layers_[static_cast<size_t>(tensor.layer)];
    const at::Tensor values = at::tensor(values_of(checkpoint.load(i, DType::kF32)));
    place[static_cast<size_t>(tensor.role)] = values.view(tensor.shape).to(type).requires_grad_();
  }
}

const at::Tensor& ReferenceDecoder::weight(Role role, int64_t layer) const {
  return (layer < 0 ? outer_ : layers_[static_cast<size_t>(layer)])[static_cast<size_t>(role)];
}

at::Tensor ReferenceDecoder::narrowed_weight(int64_t layer, Role role, const Options& options) const {
  at::Tensor result = weight(role, layer);
  if (!result.defined() || options.widths == nullptr) return result;
  const Shape shape = shape_at(spec_.tensors[static_cast<size_t>(spec_.find(role, layer))], *options.widths);
  for (size_t axis = 0; axis < shape.size(); ++axis)
    result = result.narrow(static_cast<int64_t>(axis), 0, shape[axis]);
  return result;
}

at::Tensor ReferenceDecoder::project(const at::Tensor& x, int64_t layer, Role matrix, Role bias,
                                     const Options& options) const {
  using nn::TensorRepair;
  const TensorRepair* repair = options.repairs != nullptr ? options.repairs->find(layer, matrix) : nullptr;
  at::Tensor w = own(repair, &TensorRepair::weight, type_);
  if (!w.defined()) w = narrowed_weight(layer, matrix, options);
  if (const at::Tensor a = own(repair, &TensorRepair::a, type_); a.defined())
    w = w + at::matmul(own(repair, &TensorRepair::b, type_), a);
  at::Tensor y = at::matmul(x, w.t());
  if (const at::Tensor c = narrowed_weight(layer, bias, options); c.defined()) y = y + c;
  if (const at::Tensor c = own(repair, &TensorRepair::bias, type_); c.defined()) y = y + c;
  return y;
}

at::Tensor ReferenceDecoder::norm(const at::Tensor& x, int64_t layer, Role role,
                                  const Options& options) const {
  at::Tensor w = weight(role, layer);
  if (!w.defined()) return x;
  const nn::TensorRepair* repair = options.repairs != nullptr ? options.repairs->find(layer, role) : nullptr;
  if (const at::Tensor own_weight = own(repair, &nn::TensorRepair::weight, type_); own_weight.defined())
    w = own_weight;
  return rms_normed(x, spec_.norm_eps) * (w + spec_.layer(layer).norm_offset);
}

/// \param heads  [B, heads, T, head_dim]
at::Tensor ReferenceDecoder::rotated(const at::Tensor& heads, int64_t layer) const {
  const LayerSpec& of = spec_.layer(layer);
  const std::vector<float> divisors = rope_frequency_divisors(of, spec_.head_dim);
  std::vector<double> frequencies;
  for (size_t i = 0; i < divisors.size(); ++i)
    frequencies.push_back(
        std::pow(of.rope_theta, -2 * static_cast<double>(i) / static_cast<double>(spec_.head_dim)) /
        static_cast<double>(divisors[i]));
  const at::Tensor angles = at::outer(at::arange(heads.size(2), at::kDouble), at::tensor(frequencies));
  const at::Tensor c = angles.cos().to(type_), s = angles.sin().to(type_);
  const auto halves = heads.chunk(2, -1);
  return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1);
}

at::Tensor ReferenceDecoder::masked(const at::Tensor& x, size_t space, const Options& options) const {
  if (options.unit_masks == nullptr) return x;
  const at::Tensor& mask = (*options.unit_masks)[space];  // [B, units]
  return x * mask.to(type_).repeat_interleave(x.size(2) / mask.size(1), 1).unsqueeze(1);
}

at::Tensor ReferenceDecoder::attention(const at::Tensor& x, int64_t layer, const Options& options) const {
  const LayerSpec& of = spec_.layer(layer);
  const int64_t n_tokens = x.size(1);
  const at::Tensor h = norm(x, layer, Role::kAttnNorm, options);
  const auto heads = [&](Role matrix, Role bias) {
    return project(h, layer, matrix, bias, options)
        .view({x.size(0), n_tokens, -1, spec_.head_dim})
        .transpose(1, 2);
  };
  const at::Tensor q =
      rotated(norm(heads(Role::kQuery, Role::kQueryBias), layer, Role::kQueryNorm, options), layer);
  const at::Tensor k =
      rotated(norm(heads(Role::kKey, Role::kKeyBias), layer, Role::kKeyNorm, options), layer);
  const at::Tensor v = heads(Role::kValue, Role::kValueBias);
  const at::Tensor position = at::arange(n_tokens), distance = position.unsqueeze(1) - position;
  at::Tensor hidden_keys = distance < 0;
  if (of.sliding_window > 0) hidden_keys = hidden_keys.logical_or(distance >= of.sliding_window);
  const at::Tensor scores = at::matmul(q, k.repeat_interleave(of.heads_per_group, 1).transpose(2, 3)) /
                            std::sqrt(static_cast<double>(spec_.head_dim));
  const at::Tensor weights =
      at::softmax(scores.masked_fill(hidden_keys, -std::numeric_limits<double>::infinity()), -1);
  const at::Tensor mixed = at::matmul(weights, v.repeat_interleave(of.heads_per_group, 1))
                               .transpose(1, 2)
                               .reshape({x.size(0), n_tokens, -1});
  const at::Tensor y = project(masked(mixed, spec_.attention_space(layer), options), layer, Role::kAttnOut,
                               Role::kAttnOutBias, options);
  return x + norm(y, layer, Role::kAttnPostNorm, options);
}

at::Tensor ReferenceDecoder::mlp(const at::Tensor& x, int64_t layer, const Options& options) const {
  const at::Tensor h = norm(x, layer, Role::kFfnNorm, options);
  const at::Tensor gate = project(h, layer, Role::kGate, Role::kGateBias, options);
  const at::Tensor active =
      spec_.layer(layer).activation == Activation::kSilu ? at::silu(gate) : at::gelu(gate, "tanh");
  const at::Tensor units = active * project(h, layer, Role::kUp, Role::kUpBias, options);
  const at::Tensor y =
      project(masked(units, spec_.mlp_space(layer), options), layer, Role::kDown, Role::kDownBias, options);
  return x + norm(y, layer, Role::kFfnPostNorm, options);
}

at::Tensor ReferenceDecoder::embed(const at::Tensor& ids) const {
  return at::embedding(weight(Role::kTokenEmbedding), ids);
}

at::Tensor ReferenceDecoder::layer(int64_t index, const at::Tensor& x, const Options& options) const {
  const Widths widths = options.widths != nullptr ? *options.widths : full_widths(spec_);
  at::Tensor stream = x.to(type_);
  if (options.half != nn::Half::kMlp && widths[spec_.attention_space(index)] > 0)
    stream = attention(stream, index, options);
  if (options.half != nn::Half::kAttention && widths[spec_.mlp_space(index)] > 0)
    stream = mlp(stream, index, options);
  return stream;
}

at::Tensor ReferenceDecoder::final_norm(const at::Tensor& x, const Options& options) const {
  const bool has_own = options.repairs != nullptr && options.repairs->output_norm.defined();
  const at::Tensor w = has_own ? options.repairs->output_norm.to(type_) : weight(Role::kOutputNorm);
  return rms_normed(x.to(type_), spec_.norm_eps) * (w + spec_.output_norm_offset);
}

at::Tensor ReferenceDecoder::hidden(const at::Tensor& ids, const Options& options) const {
  at::Tensor x = embed(ids);
  for (int64_t l = 0; l < spec_.n_layers; ++l) x = layer(l, x, options);
  return final_norm(x, options);
}

at::Tensor ReferenceDecoder::logits(const at::Tensor& hidden) const {
  return at::matmul(hidden, weight(spec_.tied ? Role::kTokenEmbedding : Role::kOutput).t());
}

at::Tensor ReferenceDecoder::token_nll(const at::Tensor& hidden, const at::Tensor& ids) const {
  const int64_t n_predicted = ids.size(1) - 1;
  const at::Tensor log_p = at::log_softmax(logits(hidden.narrow(1, 0, n_predicted)), -1);
  return -log_p.gather(2, ids.narrow(1, 1, n_predicted).unsqueeze(2)).squeeze(2);
}

at::Tensor ReferenceDecoder::sequence_nll(const at::Tensor& ids, const Options& options) const {
  return token_nll(hidden(ids, options), ids).sum(1);
}

}  // namespace elastify::test
