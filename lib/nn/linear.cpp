#include "nn/linear.h"

#include <torch/torch.h>

#include "base/error.h"
#include "nn/kernels.h"

namespace elastify::nn {
namespace {

/// Whether a bias belongs to units. Those of o and down do not, so importance does not use their gradients.
bool has_units(Role bias) {
  return bias != Role::kAttnOutBias && bias != Role::kDownBias;
}

bool wants_gradient(const at::Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad();
}

void check_shape(Role role, const char* part, const at::Tensor& tensor, at::IntArrayRef expected) {
  if (tensor.defined() && tensor.sizes() != expected)
    throw Error(fmt::format("repair of {}: {}: expected shape {}, got {}", name_of(role), part,
                            to_string(expected.vec()), to_string(tensor.sizes().vec())),
                "repairs belong to the widths that they were made for");
}

}  // namespace

Linear::Linear(Frozen weight, Frozen bias, const TensorRepair* repair)
    : role_(weight.role),
      bias_role_(bias.role),
      weight_(std::move(weight.tensor)),
      bias_(std::move(bias.tensor)) {
  if (repair == nullptr) return;
  repair_ = *repair;
  const int64_t n_out = weight_.size(0), n_in = weight_.size(1);
  if (repair_.a.defined() != repair_.b.defined())
    fail("repair of {}: incomplete adapter: {} is missing", name_of(role_), repair_.a.defined() ? "b" : "a");
  const int64_t rank = repair_.a.defined() ? repair_.a.size(0) : 0;
  check_shape(role_, "weight", repair_.weight, {n_out, n_in});
  check_shape(role_, "a", repair_.a, {rank, n_in});
  check_shape(role_, "b", repair_.b, {n_out, rank});
  check_shape(role_, "bias", repair_.bias, {n_out});
  if (repair_.weight.defined()) weight_ = repair_.weight;
}

void Linear::add_repair(const at::Tensor& x, const at::Tensor& y) const {
  if (repair_.a.defined()) y.addmm_(at::mm(x, repair_.a.t()), repair_.b.t());
  if (repair_.bias.defined()) y.add_(repair_.bias);
}

void Linear::forward(const at::Tensor& x, const at::Tensor& y) const {
  at::Tensor out = y;
  if (bias_.defined())
    at::addmm_out(out, bias_, x, weight_.t());
  else
    at::mm_out(out, x, weight_.t());
  add_repair(x, y);
}

void Linear::add_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y) const {
  at::Tensor out = y;
  at::addmm_out(out, residual, x, weight_.t());
  if (bias_.defined()) y.add_(bias_);
  add_repair(x, y);
}

void Linear::add_repair_backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const {
  if (repair_.a.defined()) grad_x.addmm_(at::mm(grad_y, repair_.b), repair_.a);
}

void Linear::backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const {
  at::Tensor out = grad_x;
  at::mm_out(out, grad_y, weight_);
  add_repair_backward(grad_y, grad_x);
}

void Linear::add_backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const {
  grad_x.addmm_(grad_y, weight_);
  add_repair_backward(grad_y, grad_x);
}

bool Linear::has_gradients(const ParameterGradients& gradients) const {
  return gradients.frozen || wants_gradient(repair_.weight) || wants_gradient(repair_.a) ||
         wants_gradient(repair_.b) || wants_gradient(repair_.bias);
}

void Linear::leave_gradients(const at::Tensor& x, const at::Tensor& grad_y,
                             const ParameterGradients& gradients) const {
  if (!has_gradients(gradients)) return;
  // If the level has its own weight, the frozen one does not affect the loss.
  if (gradients.frozen && !repair_.weight.defined())
    gradients.frozen(role_, at::mm(grad_y.t(), x).to(at::kFloat));
  if (gradients.frozen && bias_.defined() && has_units(bias_role_))
    gradients.frozen(bias_role_, grad_y.sum(0, false, at::kFloat));
  TensorRepair own;
  if (wants_gradient(repair_.weight)) own.weight = at::mm(grad_y.t(), x).to(at::kFloat);  // [out, in]
  if (wants_gradient(repair_.a))
    own.a = at::mm(at::mm(grad_y, repair_.b).t(), x).to(at::kFloat);  // [rank, in]
  if (wants_gradient(repair_.b))
    own.b = at::mm(grad_y.t(), at::mm(x, repair_.a.t())).to(at::kFloat);  // [out, rank]
  if (wants_gradient(repair_.bias)) own.bias = grad_y.sum(0, false, at::kFloat);
  if (own.weight.defined() || own.a.defined() || own.b.defined() || own.bias.defined())
    gradients.own[role_] = std::move(own);
}

RmsNorm::RmsNorm(Role role, at::Tensor weight, double eps, double offset, const TensorRepair* own)
    : role_(role), weight_(std::move(weight)), eps_(eps) {
  if (own != nullptr && !weight_.defined()) fail("repair of {}: the model has no such norm", name_of(role));
  if (own != nullptr && (own->a.defined() || own->b.defined() || own->bias.defined()))
    fail("repair of {}: a norm has no adapter and no bias", name_of(role));
  if (own != nullptr && own->weight.defined()) {
    check_shape(role, "weight", own->weight, weight_.sizes());
    weight_ = own->weight;
    requires_gradient_ = weight_.requires_grad();
  }
  if (weight_.defined() && offset != 0) weight_ = weight_ + offset;
}

void RmsNorm::forward(const at::Tensor& x, const at::Tensor& y) const {
  rms_norm_rows(x, weight_, eps_, y);
}

void RmsNorm::add_backward(const at::Tensor& x, const at::Tensor& grad_y, const at::Tensor& grad_x) const {
  rms_norm_backward_rows(x, weight_, eps_, grad_y, grad_x);
}

at::Tensor RmsNorm::weight_gradient(const at::Tensor& x, const at::Tensor& grad_y) const {
  if (!requires_gradient_) return {};
  const at::Tensor normed = at::empty_like(x);
  rms_norm_rows(x, at::ones_like(weight_), eps_, normed);
  return (normed.to(at::kFloat) * grad_y.to(at::kFloat)).sum(0);
}

void RmsNorm::leave_gradients(const at::Tensor& x, const at::Tensor& grad_y,
                              const ParameterGradients& gradients) const {
  if (requires_gradient_) gradients.own[role_].weight = weight_gradient(x, grad_y);
}

}  // namespace elastify::nn
