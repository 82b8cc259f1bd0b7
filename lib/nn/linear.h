#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "nn/repairs.h"

namespace elastify::nn {

/// Takes the gradient of one weight or bias of the frozen model, float32, in the shape that it has at the
/// level's widths.
using WeightGradientSink = std::function<void(Role role, const at::Tensor& gradient)>;

/// Where the way back through a half of a layer leaves gradients besides the input's.
struct ParameterGradients {
  /// Given every matrix of the frozen model that took part, and every bias that has units; empty: no such
  /// gradient is computed.
  const WeightGradientSink& frozen;
  /// Receives gradients of those tensors of the level's repairs that require one (requires_grad()), float32.
  LayerRepair& own;
};

/// One matrix of a layer at a level's widths, with its bias and the level's repair:
/// y = x W^T + c + (x a^T) b^T + c'. Rows n are tokens of all sequences.
class Linear {
 public:
  Linear() = default;
  /// A tensor of the frozen model, the leading part that the level keeps; undefined: there is none.
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
  /// grad_x = gradient by x, [n, in], given that by y, [n, out].
  void backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const;
  /// grad_x += gradient by x.
  void add_backward(const at::Tensor& grad_y, const at::Tensor& grad_x) const;
  /// Whether leave_gradients() has something to leave, and needs x for it.
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

/// x / rms(x) * w over the last axis; w is the file's weight plus the family's offset. Undefined: the
/// identity, where a layer has no such norm.
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
  /// The gradient by the weights, float32 [D], if the level's own require one; else undefined.
  at::Tensor weight_gradient(const at::Tensor& x, const at::Tensor& grad_y) const;
  /// The same, left under the norm's role.
  void leave_gradients(const at::Tensor& x, const at::Tensor& grad_y,
                       const ParameterGradients& gradients) const;

 private:
  Role role_ = Role::kAttnNorm;
  at::Tensor weight_;  ///< with the offset
  double eps_ = 0;
  bool requires_gradient_ = false;
};

}  // namespace elastify::nn
