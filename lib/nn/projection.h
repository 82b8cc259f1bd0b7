#pragma once

#include "nn/linear.h"

namespace elastify::nn {

/// The projection at the end of a half of a layer: stream + norm(W input), where W is o or down. Most
/// families have no norm there.
struct Projection {
  Linear matrix;
  RmsNorm norm;

  /// \param input   [n, units]
  /// \param stream  [n, D]
  /// \param result  [n, D], may be the stream
  void add_forward(const at::Tensor& input, const at::Tensor& stream, const at::Tensor& result) const;
  /// Whether backward() needs the input.
  bool needs_input(const ParameterGradients& gradients) const {
    return norm.defined() || matrix.has_gradients(gradients);
  }
  /// \param input        [n, units]; undefined unless needs_input()
  /// \param grad_stream  gradient of the loss by the result, [n, D]
  /// \returns            gradient by the input, [n, units]
  at::Tensor backward(const at::Tensor& input, const at::Tensor& grad_stream,
                      const ParameterGradients& gradients) const;
};

}  // namespace elastify::nn
