#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>

#include "model/checkpoint.h"
#include "model/profile.h"
#include "nn/kv_cache.h"
#include "nn/layer_trace.h"
#include "nn/linear.h"
#include "nn/options.h"
#include "nn/repairs.h"

namespace elastify::nn {

/// The projection whose input a site is: o or down.
constexpr Role projection_role(Site site) {
  return site == Site::kFfnDown ? Role::kDown : Role::kAttnOut;
}

/// The halves of a layer.
enum class Half : uint8_t { kBoth, kAttention, kMlp };

/// Options of one pass. The weights are not copied.
struct ForwardOptions {
  /// Units kept per space, run as views of the full weights; null: all. A half of a layer (attention or MLP)
  /// of width 0 is the identity. It adds neither the bias of o or down nor a repair, because a file for stock
  /// runtimes has no tensor there.
  const Widths* widths = nullptr;
  const LevelRepair* repairs = nullptr;  ///< of the level with these widths; null: none
  Half half = Half::kBoth;               ///< the half of every layer that runs; the other is the identity
  bool projects = true;  ///< false: o and down add nothing, and a trace only computes their inputs
};

/// A decoder-only transformer driven by its ModelSpec: RMSNorm, rotary attention with grouped heads, gated
/// MLP, with the biases and norms that the family has. Each layer is an AttentionHalf and an MlpHalf. Nothing
/// here uses autograd. Float32 weights of a mapped file are used in place. A streamed decoder holds the
/// weights of one layer at a time and loads a layer when that layer runs; call it from one thread, layer by
/// layer.
class Decoder {
 public:
  Decoder(const Checkpoint& checkpoint, const DecoderOptions& options);
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  const ModelSpec& spec() const;
  c10::Device device() const;
  c10::ScalarType dtype() const;
  bool is_streamed() const;

  /// \param ids  int64 [B, T]
  /// \returns    final hidden states after the output norm, [B, T, D]
  at::Tensor hidden(const at::Tensor& ids, const ForwardOptions& options = {},
                    KvCache* cache = nullptr) const;
  /// \returns logits [.., V] of hidden states [.., D]
  at::Tensor logits(const at::Tensor& hidden) const;
  /// Sum of -log p over the predicted tokens of each sequence, float64 [B]. The [B*T, V] logits are never all
  /// in memory at once.
  /// \param ids  int64 [B, T]; predicts ids[:, 1:]
  at::Tensor sequence_nll(const at::Tensor& ids, const ForwardOptions& options = {}) const;

  // Layer by layer, for layer removal, profiling and streaming.
  at::Tensor embed(const at::Tensor& ids) const;  ///< [B, T, D]
  at::Tensor layer(int64_t index, const at::Tensor& x, const ForwardOptions& options = {},
                   KvCache* cache = nullptr) const;
  at::Tensor final_norm(const at::Tensor& x, const ForwardOptions& options = {}) const;
  struct Partition {
    at::Tensor log_sum;  ///< log of the sum of exp(logits), float32 [n]
    at::Tensor mean;     ///< its gradient by the hidden states: the mean row of the output matrix, [n, D]
  };
  /// Sums over the predicted distributions for hidden states [n, D]. The logits are never all in memory at
  /// once.
  Partition partition(const at::Tensor& hidden) const;
  at::Tensor output_norm() const;    ///< the full model's weights, without the offset, [D]
  at::Tensor output_weight() const;  ///< [V, D]
  /// -log p of the given targets, [B, T-1], from hidden states [B, T, D].
  at::Tensor token_nll(const at::Tensor& hidden, const at::Tensor& ids) const;

  /// The full model's weights of o or down at these widths, [D, columns], a view; [D, 0] if that half is left
  /// out.
  at::Tensor projection(int64_t index, Site site, const Widths& widths) const;
  at::Tensor projection_bias(int64_t index, Site site) const;  ///< [D]; undefined if there is none
  /// The stream after o or down: residual [B, T, D] plus the projection, with bias, repair and norm, of its
  /// input [B, T, columns].
  at::Tensor add_projection(int64_t index, Site site, const at::Tensor& residual, const at::Tensor& input,
                            const ForwardOptions& options) const;

  // Forward with a trace, and backward.
  LayerTrace trace(int64_t index, const at::Tensor& x, const ForwardOptions& options = {}) const;
  /// Inputs of the layer's matrix products, [B, T, columns]. A model whose file leaves out that half has no
  /// norm there: [B, T, 0].
  at::Tensor site_input(int64_t index, Site site, const LayerTrace& trace,
                        const ForwardOptions& options = {}) const;
  /// The backward pass through a layer. Gradients of weights are computed only if `weights` or the level's
  /// repairs ask for them.
  /// \param trace        made with the same options; its memory is reused
  /// \param grad_output  gradient of the loss by the layer's output, [B, T, D]
  /// \param weights      see ParameterGradients::frozen
  /// \throws Error       if the trace has other widths
  LayerGradients backward(int64_t index, LayerTrace trace, const at::Tensor& grad_output,
                          const ForwardOptions& options = {},
                          const WeightGradientSink& weights = nullptr) const;
  struct Loss {
    at::Tensor nll;          ///< of each sequence, float64 [B]
    at::Tensor gradient;     ///< of their sum, by the last layer's output, [B, T, D]
    at::Tensor output_norm;  ///< gradient by the level's output norm if it requires one, float32 [D]
  };
  Loss loss_and_gradient(const at::Tensor& last_output, const at::Tensor& ids,
                         const ForwardOptions& options = {}) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace elastify::nn
