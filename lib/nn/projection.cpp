#include "nn/projection.h"

#include <torch/torch.h>

namespace elastify::nn {

void Projection::add_forward(const at::Tensor& input, const at::Tensor& stream,
                             const at::Tensor& result) const {
  if (!norm.defined()) return matrix.add_forward(input, stream, result);
  const at::Tensor y = at::empty_like(stream);
  matrix.forward(input, y);
  norm.forward(y, y);
  at::Tensor out = result;
  at::add_out(out, stream, y);
}

at::Tensor Projection::backward(const at::Tensor& input, const at::Tensor& grad_stream,
                                const ParameterGradients& gradients) const {
  at::Tensor grad_y = grad_stream;
  if (norm.defined()) {
    // The product is computed again, because keeping it would cost [n, D] in every trace, and few models have
    // this norm.
    const at::Tensor y = at::empty_like(grad_stream);
    matrix.forward(input, y);
    norm.leave_gradients(y, grad_stream, gradients);
    grad_y = at::zeros_like(grad_stream);
    norm.add_backward(y, grad_stream, grad_y);
  }
  matrix.leave_gradients(input, grad_y, gradients);
  const at::Tensor grad_input = at::empty({grad_y.size(0), matrix.n_inputs()}, grad_y.options());
  matrix.backward(grad_y, grad_input);
  return grad_input;
}

}  // namespace elastify::nn
