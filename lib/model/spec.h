#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor.h"

namespace elastify {

/// The part that a tensor plays in the decoder.
enum class Role : uint8_t {
  kTokenEmbedding,
  kOutputNorm,
  kOutput,
  kAttnNorm,
  kQuery,
  kKey,
  kValue,
  kAttnOut,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kAttnOutBias,
  kQueryNorm,
  kKeyNorm,
  kFfnNorm,
  kGate,
  kUp,
  kDown,
  kGateBias,
  kUpBias,
  kDownBias,
  // Last, because unfinished profiles number the roles.
  kAttnPostNorm,
  kFfnPostNorm,
};
inline constexpr size_t kRoles = static_cast<size_t>(Role::kFfnPostNorm) + 1;
/// "q", "gate bias", "norm before attention"
std::string_view name_of(Role role);

enum class SpaceKind : uint8_t { kAttention, kMlp };

/// A named set of interchangeable units that several tensor axes share: the KV groups or the MLP neurons of
/// one layer. Permuting the units of a space in all its tensors leaves the model's function unchanged.
struct AxisSpace {
  std::string name;  ///< "layers.3.attn", "layers.3.mlp"
  SpaceKind kind;
  int64_t layer;
  int64_t n_units;
};

/// How one axis of a tensor is made of units: `block` consecutive elements per unit of `space`.
struct AxisUse {
  int64_t space = -1;  ///< index into ModelSpec::spaces; -1: none, the axis never moves
  int64_t block = 1;
};

struct TensorSpec {
  Role role;
  int64_t layer;     ///< -1 outside the layers
  std::string name;  ///< Hugging Face's, used throughout the project
  std::string gguf_name;
  Shape shape;                ///< [out, in] for matrices
  std::vector<AxisUse> axes;  ///< one per axis of `shape`
};

/// Rotary scaling of the frequencies. Source: transformers, modeling_rope_utils.py; llama3: Llama 3.1.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3, kFactors };
  Kind kind = Kind::kNone;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  ///< kLlama3
  double original_max_seq = 0;                       ///< kLlama3, tokens
  std::vector<float> factors;  ///< kFactors: [head_dim / 2], divisors of the frequencies

  bool operator==(const RopeScaling&) const = default;
};

/// Activation of the gate in an MLP. GELU is the approximation by tanh.
enum class Activation : uint8_t { kSilu, kGeluTanh };

/// How a layer computes, besides its widths. Families fill it in from the configuration, layer by layer. A
/// norm after a half of a layer (kAttnPostNorm, kFfnPostNorm) is a row of the family's table.
struct LayerSpec {
  Activation activation = Activation::kSilu;
  double norm_offset = 0;       ///< added to the weights of its norms: 1 if a file holds w - 1
  int64_t heads_per_group = 1;  ///< query heads that share one K/V head: H / K
  int64_t sliding_window = 0;   ///< tokens; 0: full attention
  double rope_theta = 10000;
  RopeScaling rope = {};

  bool operator==(const LayerSpec&) const = default;
};

/// Dimensions and tensor table of a decoder. Widths may differ by layer (a sub-model's file is a model too);
/// a layer with 0 KV heads has no attention tensors, and one with 0 neurons has no MLP tensors: see
/// check_droppable().
/// Letters: D = d_model, H = n_heads, K = n_kv_heads, F = d_ff, V = n_vocab.
struct ModelSpec {
  std::string family;  ///< a row of families(): "llama", "mistral", "qwen2", "qwen3"
  int64_t n_layers = 0, d_model = 0, n_vocab = 0;
  int64_t max_seq = 0;  ///< tokens
  int64_t head_dim = 0;
  std::vector<int64_t> layer_kv_heads;  ///< [n_layers]
  std::vector<int64_t> layer_d_ff;      ///< [n_layers]
  std::vector<LayerSpec> layers;        ///< [n_layers]
  double norm_eps = 1e-5;
  double output_norm_offset = 0;  ///< added to the weights of the output norm, see LayerSpec::norm_offset
  bool tied = false;
  bool qkv_bias = false, attn_out_bias = false, mlp_bias = false, qk_norm = false;

  // Filled in by complete_spec() from the fields above.
  std::vector<AxisSpace> spaces;    ///< attention and MLP of layer 0, of layer 1, ...
  std::vector<TensorSpec> tensors;  ///< in file order: embedding, layers, norm, output

  // Values of the widest layer, which files with uniform widths state.
  int64_t n_kv_heads() const;
  int64_t n_heads() const;
  int64_t d_ff() const;
  bool is_uniform() const;  ///< all layers equally wide
  const LayerSpec& layer(int64_t index) const { return layers.at(static_cast<size_t>(index)); }

  size_t attention_space(int64_t layer) const { return static_cast<size_t>(2 * layer); }
  size_t mlp_space(int64_t layer) const { return static_cast<size_t>(2 * layer + 1); }
  /// Index into `tensors`, or -1 if this model has no such tensor.
  int64_t find(Role role, int64_t layer = -1) const;
  int64_t find(std::string_view name) const;
};

/// How many leading units of every space are kept: [spaces].
using Widths = std::vector<int64_t>;

Widths full_widths(const ModelSpec& spec);
Shape shape_at(const TensorSpec& tensor, const Widths& widths);
/// Whether the tensor exists at these widths. A half of a layer (attention or MLP) of width 0 loses all its
/// tensors, norm and biases included, and computes the identity.
bool is_kept(const ModelSpec& spec, const TensorSpec& tensor, const Widths& widths);
/// Checks which halves have width 0. Allowed are the attention of any layer but the first, and the MLP of any
/// layer but the last if the layer's attention also has width 0. Stock runtimes compute other cases wrongly
/// or not at all.
/// \throws Error  naming the space and the reason
void check_droppable(const ModelSpec& spec, const Widths& widths);
/// \throws Error  naming the space, unless every width is 1 to n_units, or 0 where check_droppable() allows it
void check_widths(const ModelSpec& spec, const Widths& widths);
/// \param work  the operation that needs all halves, for the message: "reordering"
/// \throws Error  if halves of layers are missing
void require_all_halves(const ModelSpec& spec, std::string_view work);
/// The spec of the sub-model with these widths. Its tensor table lists only the kept tensors.
ModelSpec narrowed(const ModelSpec& spec, const Widths& widths);

int64_t n_params(const ModelSpec& spec, const Widths& widths);  ///< all tensors, tied output counted once
/// Number of weights inside decoder layers. Ratios count these unless stated otherwise.
int64_t n_decoder_params(const ModelSpec& spec, const Widths& widths);
/// Number of weights that belong to one unit of the space; 0 if the space has no tensors.
int64_t params_per_unit(const ModelSpec& spec, size_t space);

/// SHA-256 over everything that makes two models interchangeable in shape. Every file that we write states
/// it.
std::string spec_hash(const ModelSpec& spec);

/// Fills `spaces` and `tensors` from the dimensions and the family's table.
/// \throws Error  listing every invalid dimension
void complete_spec(ModelSpec& spec);

/// Lists how the model's layers differ from Llama's or from each other: "gelu in the mlp", "windows that
/// differ by layer". Writers of formats that cannot express such differences refuse the model. Empty for
/// families whose configuration has none.
std::vector<std::string> layer_peculiarities(const ModelSpec& spec);

/// Divisors of a layer's rotary frequencies, [head_dim / 2]; all 1 without scaling.
std::vector<float> rope_frequency_divisors(const LayerSpec& layer, int64_t head_dim);

}  // namespace elastify
