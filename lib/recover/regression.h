#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/repairs.h"
#include "recover/options.h"

namespace elastify::recover {

/// Sums over tokens for one projection: inputs x [k] and targets y [D], float64 on the CPU.
struct Sums {
  at::Tensor xx, xy;  ///< [k, k] on and below the diagonal, [k, D]; undefined: not wanted
  at::Tensor x, y;    ///< [k], [D]
  double n = 0;       ///< of the weights

  /// \param products  whether xx and xy are wanted
  Sums(int64_t n_inputs, int64_t n_outputs, bool products);
  /// \param inputs   [rows, k]
  /// \param targets  [rows, D]
  /// \param weights  of the rows' squared errors, [rows, 1]
  void add(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights);
  Sums operator+(const Sums& other) const;
  /// The same of the leading inputs alone.
  Sums leading(int64_t n_inputs) const;
};

/// [.., D] as [rows, D].
at::Tensor rows_of(const at::Tensor& x);
/// What a token's squared error counts, [rows, 1]: by the size of the stream [B, T, D] that the next norm
/// divides it by. In some models the first token's stream is hundreds of times as large as any other's and
/// would decide the fit.
at::Tensor token_weights(const at::Tensor& stream, const ClosedFormOptions& options);

/// What a projection is fitted on: some batches apart (is_held_out()), to choose the ridge by.
class Sample {
 public:
  /// \param n_batches  that will be added
  Sample(int64_t n_inputs, int64_t n_outputs, size_t n_batches, const ClosedFormOptions& options);
  void add(size_t batch, const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights);

  /// Weights, adapter, bias as the options ask for.
  /// \param weight  as it is, [D, k]
  /// \param rank    of an adapter; 0: none
  /// \param root    lower L of the metric L L^T that errors in y count by, float64 [D, D]; undefined: all of y
  ///   counts alike
  nn::TensorRepair repair(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
                          const at::Tensor& root) const;
  /// What each further rank of an adapter would take off the error in that metric, falling, float64
  /// [min(k, D)].
  /// \param weight  of the leading k inputs, [D, k]
  at::Tensor gains(const at::Tensor& weight, const ClosedFormOptions& options, const at::Tensor& root) const;

 private:
  Sums all() const;
  double ridge(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
               const at::Tensor& root) const;

  Sums fitted_, held_out_;
  size_t n_batches_;
  bool holds_out_;
};

}  // namespace elastify::recover
