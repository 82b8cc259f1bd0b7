#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "nn/repairs.h"

namespace elastify::nn {

/// Receives the gradient of one weight or bias of the frozen model, float32, in its shape at the level's
/// widths.
using WeightGradientSink = std::function<void(Role role, const at::Tensor& gradient)>;

/// The receivers of parameter gradients in the backward pass through a half of a layer.
struct ParameterGradients {
  /// Called for every matrix of the frozen model that is in use, and for every bias that has units. Empty:
  /// these gradients are not computed.
  const WeightGradientSink& frozen;
  /// Receives gradients by those tensors of the level's repairs that require one (requires_grad()), float32.
  LayerRepair& own;
};

/// One matrix of a layer at a level's widths, with its bias and the level's repair:
/// y = x W^T + c + (x a^T) b^T + c'. Rows n are tokens of all sequences.
class Linear {
 public:
  Linear() = default;
  /// The leading part of a frozen model's tensor that the level keeps; undefined: there is none.
  struct Frozen {
    Role role;
    at::Tensor tensor;
  };
  /// \param weight  [out, in]
  /// \param bias    [out]
  /// \param repair  of the level; null: none
  /// \throws Error  naming the role, if the repair's shapes are not the level's
  Linear(Frozen weight, Frozen bias, const TensorRepair* repair);

  int64_t n_inputs() const { return weight_.size(1); }
  int64_t n_outputs() const { return weight_.size(0); }
  /// \param x  [n, in]
  /// \param y  [n, out], receives the product
  void forward(const at::Tensor& x, const at::Tensor& y) const;
  /// y = residual + product; y may be the residual, [n, out].
  void add_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y) const;
  /// grad_x = gradient by x, [n, in], from the gradient by y, [n, out].
  void backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const;
  /// grad_x += gradient by x.
  void add_backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const;
  /// Whether leave_gradients() computes any gradients, for which it needs x.
  bool has_gradients(const ParameterGradients& gradients) const;
  void leave_gradients(const at::Tensor& x, const at::Tensor& grad_y,
                       const ParameterGradients& gradients) const;

 private:
  void add_repair(const at::Tensor& x, const at::Tensor& y) const;
  void add_repair_backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const;

  Role role_ = Role::kQuery, bias_role_ = Role::kQueryBias;
  at::Tensor weight_, bias_;
  TensorRepair repair_;
};

/// x / rms(x) * w over the last axis, where w is the file's weight plus the family's offset. An undefined
/// norm is the identity, for layers without such a norm.
class RmsNorm {
 public:
  RmsNorm() = default;
  /// \param weight  [D]; undefined: no norm
  /// \param own     the level's repair, whose weight replaces it; null: none
  /// \throws Error  naming the role, if the repair's shape is not [D]
  RmsNorm(Role role, at::Tensor weight, double eps, double offset, const TensorRepair* own);

  bool defined() const { return weight_.defined(); }
  /// \param x, y  contiguous [n, D], may be the same
  void forward(const at::Tensor& x, const at::Tensor& y) const;
  /// grad_x += gradient by x.
  /// \param x, grad_y, grad_x  contiguous [n, D], none the same
  void add_backward(const at::Tensor& x, const at::Tensor& grad_y, const at::Tensor& grad_x) const;
  /// The gradient by the weights, float32 [D]; undefined if the level has no own weights that require one.
  at::Tensor weight_gradient(const at::Tensor& x, const at::Tensor& grad_y) const;
  /// Stores weight_gradient() in `gradients` under the norm's role.
  void leave_gradients(const at::Tensor& x, const at::Tensor& grad_y,
                       const ParameterGradients& gradients) const;

 private:
  Role role_ = Role::kAttnNorm;
  at::Tensor weight_;  ///< with the offset
  double eps_ = 0;
  bool requires_gradient_ = false;
};

}  // namespace elastify::nn
