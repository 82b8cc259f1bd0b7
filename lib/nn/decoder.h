#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/profile.h"
#include "nn/options.h"
#include "nn/repairs.h"

namespace elastify::nn {

/// The matrix that a site is the input of: o or down.
constexpr Role projection_role(Site site) {
  return site == Site::kFfnDown ? Role::kDown : Role::kAttnOut;
}

/// The halves of a layer.
enum class Half : uint8_t { kBoth, kAttention, kMlp };

/// What changes from one forward pass to the next; the weights stay where they are.
struct ForwardOptions {
  /// Units kept per space, run as views of the full weights; null: all. A half of a layer (attention or MLP)
  /// of width 0 is the identity: the stream passes it by. It adds neither the bias of o or down nor a repair,
  /// because a file for stock runtimes has no tensor there.
  const Widths* widths = nullptr;
  /// Multiplied onto the units' activations (before o_proj and down_proj), [B, n_units] per space; undefined:
  /// none. Their gradients are the first-order importances.
  const std::vector<at::Tensor>* unit_masks = nullptr;
  const LevelRepair* repairs = nullptr;  ///< of the level that `widths` chooses; null: none
  Half half = Half::kBoth;               ///< of every layer: what is run; the other half adds nothing
  bool projects = true;     ///< false: o and down add nothing; a trace then costs only what goes into them
  int64_t skip_layer = -1;  ///< this layer is left out (its residual stream passes through)
};

/// Keys and values of the tokens so far, for generation.
struct KvCache {
  std::vector<at::Tensor> keys, values;  ///< per layer, [B, K, T, head_dim]; undefined without attention
  int64_t length = 0;
};

/// What one layer computed on its way, enough to go back through it. [B, T, ...] Of a half that is left out,
/// what has units is empty: 0 heads, 0 columns.
struct LayerTrace {
  at::Tensor input;         ///< residual stream before, [B, T, D]
  at::Tensor q, k, v;       ///< rotated, [B, T, H or K, head_dim]
  at::Tensor raw_q, raw_k;  ///< before q/k norms; undefined without these
  at::Tensor attention;     ///< what goes into o, [B, T, H * head_dim]
  at::Tensor middle;        ///< residual stream between attention and MLP, [B, T, D]
  at::Tensor gate, up;      ///< [B, T, F]; silu(gate) * up goes into down
  at::Tensor output;        ///< residual stream after, [B, T, D]
};

struct LayerGradients {
  at::Tensor input;  ///< of the loss by the layer's input, [B, T, D]
  /// Sum over t of a_t dL/da_t per column of what goes into o and down, float64 [B, H * head_dim], [B, F]:
  /// the gradients of multiplicative masks on these columns.
  at::Tensor attention_masks, mlp_masks;
};

/// Takes the gradient of one weight or bias of the layer, float32, in the weight's shape.
using WeightGradientSink = std::function<void(Role role, const at::Tensor& gradient)>;

/// A decoder-only transformer driven by its ModelSpec: RMSNorm, rotary attention with grouped heads,
/// gated SiLU MLP, optional biases and q/k norms. Float32 weights of a mapped file are used in place.
/// Streamed, it holds the weights of one layer at a time and loads a layer when it is asked to run it: then
/// call it from one thread, layer by layer.
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
  /// Sum over the predicted tokens of each sequence of -log p, float64 [B]; the vocabulary is walked in slabs
  /// of rows, so that the [B*T, V] logits are never all in memory when no gradient is wanted.
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
  /// What the model expects after hidden states [n, D]; the logits are never all in memory.
  Partition partition(const at::Tensor& hidden) const;
  at::Tensor output_norm() const;    ///< its weights, [D]
  at::Tensor output_weight() const;  ///< [V, D]
  /// -log p of the given targets, [B, T-1], from hidden states [B, T, D].
  at::Tensor token_nll(const at::Tensor& hidden, const at::Tensor& ids) const;

  /// Weights of o or down at these widths, [D, columns], a view; [D, 0] where that half is left out.
  at::Tensor projection(int64_t index, Site site, const Widths& widths) const;
  at::Tensor projection_bias(int64_t index, Site site) const;  ///< [D]; undefined where there is none
  /// The stream after o or down: residual [B, T, D] plus what the projection, with its bias and repair, makes
  /// of its input [B, T, columns].
  at::Tensor add_projection(int64_t index, Site site, const at::Tensor& residual, const at::Tensor& input,
                            const ForwardOptions& options) const;

  // The way there and back without autograd: no graph, no weight gradients unless asked for.
  LayerTrace trace(int64_t index, const at::Tensor& x, const ForwardOptions& options = {}) const;
  /// What went into the layer's matrix products, [B, T, columns]. A model whose file leaves out that half has
  /// no norm there: [B, T, 0].
  at::Tensor site_input(int64_t index, Site site, const LayerTrace& trace) const;
  /// Of layers with both halves at full width.
  /// \param trace  is used up
  /// \param grad_output  of the loss by the layer's output, [B, T, D]
  /// \param weights  also given the gradients of all matrices and biases that have units
  LayerGradients backward(int64_t index, LayerTrace trace, const at::Tensor& grad_output,
                          const WeightGradientSink& weights = nullptr) const;
  struct Loss {
    at::Tensor nll;       ///< of each sequence, float64 [B]
    at::Tensor gradient;  ///< of their sum by the last layer's output, [B, T, D]
  };
  Loss loss_and_gradient(const at::Tensor& last_output, const at::Tensor& ids) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Text sampled from the model itself (calibration without data): `n` sequences of `seq_len` ids that begin
/// with `first_id`, temperature 1, all sequences in one batch. Deterministic for a seed and thread count.
std::vector<std::vector<int32_t>> sample_sequences(const Decoder& decoder, int64_t n, int64_t seq_len,
                                                   int32_t first_id, uint64_t seed);

/// "cpu", "cuda", "cuda:1".
/// \throws UsageError  if there is no such device
c10::Device device_named(const std::string& name);
/// Which GPU the n-th of several processes of one machine computes on.
std::string device_of_process(int rank);

/// Threads for LibTorch's kernels and BLAS; 0: all cores.
void set_threads(int n);

/// LibTorch version, BLAS in use, threads, SIMD, CUDA devices, and GFLOP/s of a float32 matrix product
/// measured now.
struct SystemReport {
  std::string torch_version, blas, simd, cuda;
  int threads = 0;
  double gemm_gflops = 0;
};
SystemReport inspect_system();
/// Warns once on stderr when matrix products are far slower than this machine can do (reference BLAS).
void warn_if_blas_is_slow();

}  // namespace elastify::nn
