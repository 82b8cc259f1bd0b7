#pragma once

#include <ATen/core/Tensor.h>

#include "model/spec.h"
#include "nn/layer_trace.h"
#include "nn/linear.h"
#include "nn/projection.h"
#include "nn/workspace.h"

namespace elastify::nn {

/// The MLP half of a layer at a level's widths and with its repairs:
///   h = norm(x);  y = x + W_down (activation(W_gate h) * W_up h)
/// B sequences of T tokens, F neurons. The backward pass does not use autograd. All functions run with
/// gradients disabled.
struct MlpHalf {
  RmsNorm norm;
  Linear gate, up;
  Projection down;
  Activation activation = Activation::kSilu;

  /// \param x  residual stream [B, T, D], contiguous; overwritten by the result
  void forward(const at::Tensor& x, Workspace& workspace) const;
  /// Like forward(), but leaves x unchanged and records the tensors that backward() needs: fills `gate`, `up`
  /// and `output` of `trace`.
  /// \param projects  false: down adds nothing, and `output` is x
  void trace(const at::Tensor& x, bool projects, LayerTrace& trace) const;
  /// Input of down, [B, T, F].
  at::Tensor units(const LayerTrace& trace) const;
  /// \param trace   filled by trace() with `projects`, at the same widths and with the same repairs; `gate`
  ///   and `up` are overwritten by their gradients
  /// \param grad    gradient of the loss by `output`, [B * T, D]; overwritten by the gradient by x
  /// \param result  receives mlp_masks
  void backward(const LayerTrace& trace, const at::Tensor& grad, const ParameterGradients& gradients,
                LayerGradients& result) const;

 private:
  at::Tensor run(const at::Tensor& x, Workspace& workspace, bool projects, LayerTrace* trace) const;
};

}  // namespace elastify::nn
