#include "nn/mlp_half.h"

#include <torch/torch.h>

#include "nn/kernels.h"

namespace elastify::nn {
namespace {

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

}  // namespace

at::Tensor MlpHalf::run(const at::Tensor& x, Workspace& workspace, bool projects, LayerTrace* trace) const {
  using Slot = Workspace::Slot;
  const int64_t n = x.size(0) * x.size(1), n_units = gate.n_outputs();
  // A trace must not use the workspace, which the next layer overwrites.
  const auto space = [&](Slot slot) {
    return trace != nullptr ? at::empty({n, n_units}, x.options())
                            : workspace.get(slot, n, n_units, x.options());
  };
  const at::Tensor stream = x.view({n, -1});                                        // [n, D]
  const at::Tensor h = workspace.get(Slot::kNorm, n, stream.size(1), x.options());  // [n, D]
  const at::Tensor gates = space(Slot::kGate), ups = space(Slot::kUp);              // [n, F]
  norm.forward(stream, h);
  gate.forward(h, gates);
  up.forward(h, ups);
  if (trace != nullptr) {
    trace->gate = gates.view({x.size(0), x.size(1), -1});
    trace->up = ups.view({x.size(0), x.size(1), -1});
  }
  if (!projects) return x;
  // Overwrites the gates, unless a trace keeps them.
  const at::Tensor units =
      trace != nullptr ? workspace.get(Slot::kGate, n, n_units, x.options()) : gates;  // [n, F]
  multiply_gated(activation, gates, ups, units);
  const at::Tensor result = trace != nullptr ? at::empty_like(stream) : stream;
  down.add_forward(units, stream, result);
  return result.view(x.sizes());
}

void MlpHalf::forward(const at::Tensor& x, Workspace& workspace) const {
  run(x, workspace, true, nullptr);
}

void MlpHalf::trace(const at::Tensor& x, bool projects, LayerTrace& trace) const {
  Workspace workspace;
  trace.output = run(x, workspace, projects, &trace);
}

at::Tensor MlpHalf::units(const LayerTrace& trace) const {
  const at::Tensor units = at::empty_like(trace.gate);
  multiply_gated(activation, trace.gate, trace.up, units);
  return units;
}

void MlpHalf::backward(const LayerTrace& trace, const at::Tensor& grad, const ParameterGradients& gradients,
                       LayerGradients& result) const {
  const at::Tensor input = down.needs_input(gradients) ? rows_of(units(trace)) : at::Tensor();  // [n, F]
  at::Tensor grad_units = down.backward(input, grad, gradients);                                // [n, F]
  result.mlp_masks =
      multiply_gated_backward(activation, trace.gate, trace.up, grad_units.view(trace.gate.sizes()));
  grad_units.reset();
  const at::Tensor grad_gate = rows_of(trace.gate), grad_up = rows_of(trace.up);  // [n, F]
  const at::Tensor x = rows_of(trace.middle), h = at::empty_like(x);              // [n, D]
  if (gate.has_gradients(gradients) || up.has_gradients(gradients)) {
    norm.forward(x, h);
    gate.leave_gradients(h, grad_gate, gradients);
    up.leave_gradients(h, grad_up, gradients);
  }
  const at::Tensor& grad_h = h;  // the input of gate and up is no longer needed
  gate.backward(grad_gate, grad_h);
  up.add_backward(grad_up, grad_h);
  norm.leave_gradients(x, grad_h, gradients);
  norm.add_backward(x, grad_h, grad);
}

}  // namespace elastify::nn
