#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <map>
#include <string>

#include "model/profile.h"
#include "nn/decoder.h"

namespace elastify::profile {

/// The sums that are wanted.
struct Wanted {
  bool inputs = true;             ///< sums over the inputs of the matrix products, and the layer's influence
  bool gradients = false;         ///< gradients of unit masks: taylor, fisher
  bool weight_gradients = false;  ///< taylor-element
  bool activation_norms = false;  ///< activation
  bool second_moments = false;
  bool any_gradient() const { return gradients || weight_gradients; }
  /// The sums that the forward pass through a layer gives, and those of the backward pass.
  Wanted forward() const { return {inputs, false, false, activation_norms, second_moments}; }
  Wanted backward() const { return {false, gradients, weight_gradients, false, false}; }
};
/// The sums that these metrics need.
Wanted wanted_by(const std::vector<Metric>& metrics, bool second_moments);

/// Sums over calibration tokens for one layer, float64 on the CPU. Every member is a sum, so parts that were
/// measured separately (by batch, by process) add up.
struct LayerStatistics {
  // Tensors that are not wanted are undefined.
  std::array<at::Tensor, 4> sums, squares;  ///< by Site: of x and x^2, [columns]
  at::Tensor influence;                     ///< of 1 - cos over the layer, its attention, its MLP: [3]
  // For attention and MLP:
  std::array<at::Tensor, 2> norms;           ///< of a unit's ||a||, [n_units]
  std::array<at::Tensor, 2> taylor, fisher;  ///< of |dL/dm| and its square over sequences, [n_units]
  std::array<at::Tensor, 2> moments;         ///< X^T X, [columns, columns]; only the lower triangle counts
  std::map<Role, at::Tensor> weight_gradients;

  static LayerStatistics zeros(const ModelSpec& spec, int64_t layer, const Wanted& wanted);

  /// Adds the sums of the forward pass through the layer.
  void add(const nn::Decoder& decoder, int64_t layer, const nn::LayerTrace& trace);
  /// Adds the sums of the backward pass.
  /// \returns the gradient of the loss by the layer's input
  at::Tensor add_backward(const nn::Decoder& decoder, int64_t layer, nn::LayerTrace trace,
                          const at::Tensor& grad_output);

  /// Visits every tensor that is wanted. Its name is the same for every layer.
  void for_each(const std::function<void(const std::string& name, at::Tensor& tensor)>& visit);
};

/// Turns a layer's sums into scores, metric by metric. Reads the layer's weights.
/// \returns [attention, mlp][n_units]
std::map<Metric, std::array<std::vector<float>, 2>> layer_scores(const LayerStatistics& statistics,
                                                                 const Checkpoint& checkpoint, int64_t layer,
                                                                 const std::vector<Metric>& metrics,
                                                                 int64_t n_tokens);

/// wanda's scores of one space, from the mean squares of the inputs of o or down, [columns].
std::vector<float> wanda_scores(const Checkpoint& checkpoint, size_t space,
                                const std::vector<double>& mean_squares);

}  // namespace elastify::profile
