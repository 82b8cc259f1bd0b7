#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/repairs.h"
#include "recover/options.h"

namespace elastify::recover {

/// Sums over tokens for one projection: inputs x [k] and targets y [D], float64 on the CPU.
struct Sums {
  at::Tensor xx, xy;  ///< [k, k] on and below the diagonal, [k, D]; undefined: not needed
  at::Tensor x, y;    ///< [k], [D]
  double n = 0;       ///< sum of the weights

  /// \param products  whether xx and xy are needed
  Sums(int64_t n_inputs, int64_t n_outputs, bool products);
  /// \param inputs   [rows, k]
  /// \param targets  [rows, D]
  /// \param weights  of the rows' squared errors, [rows, 1]
  void add(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights);
  Sums operator+(const Sums& other) const;
  /// The sums of only the leading inputs.
  Sums leading(int64_t n_inputs) const;
};

/// [.., D] as [rows, D].
at::Tensor rows_of(const at::Tensor& x);
/// Weights of the tokens' squared errors, [rows, 1]: one over the mean square of the token's stream [B, T,
/// D], because the next norm divides by its root. Without weights, the first token would decide the fit in
/// some models, where its stream is hundreds of times as large as any other's.
at::Tensor token_weights(const at::Tensor& stream, const ClosedFormOptions& options);

/// Sums that one projection is fitted on. Some batches are held out (is_held_out()) to choose the ridge and
/// the share of the fitted change to keep.
class Sample {
 public:
  /// \param n_batches  number of batches that will be added
  Sample(int64_t n_inputs, int64_t n_outputs, size_t n_batches, const ClosedFormOptions& options);
  void add(size_t batch, const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights);

  struct Result {
    nn::TensorRepair repair;
    double share = 1;  ///< kept of the fitted change of the weights, see ClosedFormOptions::guard
  };
  /// Fits the weights, adapter and bias that the options ask for.
  /// \param weight  the unrepaired weights, [D, k]
  /// \param rank    of an adapter; 0: none
  /// \param root    lower L of the metric L L^T for errors in y, float64 [D, D]; undefined: Euclidean
  Result repair(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
                const at::Tensor& root) const;
  /// The reduction of the error in that metric by each further rank of an adapter, falling, float64 [min(k,
  /// D)].
  /// \param weight  of the leading k inputs, [D, k]
  at::Tensor gains(const at::Tensor& weight, const ClosedFormOptions& options, const at::Tensor& root) const;

 private:
  Sums all() const;
  double ridge(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
               const at::Tensor& root) const;
  double share(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
               const at::Tensor& root, double ridge) const;

  Sums fitted_, held_out_;
  size_t n_batches_;
  bool holds_out_;
};

}  // namespace elastify::recover
