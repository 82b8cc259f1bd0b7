#include "model/spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include <fmt/ranges.h>

#include "base/error.h"
#include "base/hash.h"
#include "model/families/families.h"

namespace elastify {
namespace {

// Limits far above all existing models, and low enough that no product or sum of sizes below overflows int64.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxVocab = int64_t{1} << 28;
constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr int64_t kMaxHeadsPerGroup = 1 << 16;

using Problems = std::vector<std::string>;

void require_range(Problems& problems, std::string_view what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    problems.push_back(fmt::format("{} is {}, expected {} to {}", what, value, low, high));
}

template <typename T>
bool all_equal(const std::vector<T>& values) {
  return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) == values.end();
}

void require_positive(Problems& problems, std::string_view what, double value) {
  if (!std::isfinite(value) || value <= 0)
    problems.push_back(fmt::format("{} is {}, expected a positive number", what, value));
}

/// Whether a role of a layer belongs to attention; the others belong to the MLP.
bool is_attention(Role role) {
  return (role >= Role::kAttnNorm && role <= Role::kKeyNorm) || role == Role::kAttnPostNorm;
}

/// The reason why a layer has to keep this half; empty if it can be left out. The reasons come from
/// llama.cpp's deci: src/models/deci.cpp, and load_hparams() in src/llama-model.cpp.
std::string_view why_kept(SpaceKind half, int64_t layer, int64_t n_layers, int64_t kv_groups) {
  if (half == SpaceKind::kAttention)
    return layer == 0 ? "stock runtimes read the size of a head from layer 0" : "";
  if (kv_groups > 0) return "stock runtimes leave out the attention of a layer without an mlp, too";
  return layer == n_layers - 1 ? "stock runtimes stop at a last layer without an mlp" : "";
}

void check_layers(Problems& problems, const ModelSpec& spec, std::string_view what, SpaceKind half,
                  const std::vector<int64_t>& values, int64_t high) {
  if (static_cast<int64_t>(values.size()) != spec.n_layers) {
    problems.push_back(
        fmt::format("{} is given for {} layers, expected {}", what, values.size(), spec.n_layers));
    return;
  }
  for (size_t layer = 0; layer < values.size(); ++layer) {
    const int64_t kv_groups = layer < spec.layer_kv_heads.size() ? spec.layer_kv_heads[layer] : 0;
    const std::string_view reason = why_kept(half, static_cast<int64_t>(layer), spec.n_layers, kv_groups);
    if (values[layer] >= (reason.empty() ? 0 : 1) && values[layer] <= high) continue;
    const bool drops = values[layer] == 0;
    problems.push_back(fmt::format("{} of layer {} is {}, expected {} to {}{}{}", what, layer, values[layer],
                                   reason.empty() ? 0 : 1, high, drops ? ": " : "", drops ? reason : ""));
    return;  // one message is enough
  }
}

void check_rope(Problems& problems, const LayerSpec& layer, int64_t head_dim) {
  const RopeScaling& rope = layer.rope;
  require_positive(problems, "rope theta", layer.rope_theta);
  if (rope.kind == RopeScaling::Kind::kLinear || rope.kind == RopeScaling::Kind::kLlama3)
    require_positive(problems, "rope scaling factor", rope.factor);
  if (rope.kind == RopeScaling::Kind::kLlama3) {
    require_positive(problems, "rope low_freq_factor", rope.low_freq_factor);
    require_positive(problems, "rope high_freq_factor", rope.high_freq_factor);
    if (!(rope.original_max_seq >= 1 && rope.original_max_seq <= static_cast<double>(kMaxTokens)))
      problems.push_back(fmt::format("rope original_max_position_embeddings is {}, expected 1 to {}",
                                     rope.original_max_seq, kMaxTokens));
    if (!(rope.high_freq_factor > rope.low_freq_factor))
      problems.push_back(fmt::format("rope high_freq_factor is {}, expected more than low_freq_factor ({})",
                                     rope.high_freq_factor, rope.low_freq_factor));
  }
  if (rope.kind == RopeScaling::Kind::kFactors) {
    if (static_cast<int64_t>(rope.factors.size()) != head_dim / 2)
      problems.push_back(fmt::format("there are {} rope factors, expected head_dim / 2 = {}",
                                     rope.factors.size(), head_dim / 2));
    for (const float factor : rope.factors) {
      if (std::isfinite(factor) && factor > 0) continue;
      problems.push_back(fmt::format("a rope factor is {}, expected a positive number", factor));
      break;
    }
  }
}

/// Checks how layers compute. If all are alike, only the first one is checked.
void check_layer_specs(Problems& problems, const ModelSpec& spec) {
  if (static_cast<int64_t>(spec.layers.size()) != spec.n_layers) {
    problems.push_back(
        fmt::format("there are specs of {} layers, expected {}", spec.layers.size(), spec.n_layers));
    return;
  }
  const bool alike = all_equal(spec.layers);
  for (size_t l = 0; l < (alike ? 1 : spec.layers.size()); ++l) {
    const LayerSpec& layer = spec.layers[l];
    Problems found;
    require_range(found, "query heads per kv head", layer.heads_per_group, 1, kMaxHeadsPerGroup);
    require_range(found, "sliding window", layer.sliding_window, 0, kMaxTokens);
    if (!std::isfinite(layer.norm_offset))
      found.push_back(fmt::format("norm offset is {}, expected a finite number", layer.norm_offset));
    check_rope(found, layer, spec.head_dim);
    for (const std::string& problem : found)
      problems.push_back(alike ? problem : fmt::format("layer {}: {}", l, problem));
  }
}

bool is_present(Present present, const ModelSpec& spec) {
  switch (present) {
    case Present::kAlways:
      return true;
    case Present::kUntied:
      return !spec.tied;
    case Present::kQkvBias:
      return spec.qkv_bias;
    case Present::kAttnOutBias:
      return spec.attn_out_bias;
    case Present::kMlpBias:
      return spec.mlp_bias;
    case Present::kQkNorm:
      return spec.qk_norm;
  }
  return false;
}

void check_flags(Problems& problems, const ModelSpec& spec, const Family& family) {
  const std::pair<Present, std::string_view> flags[] = {{Present::kQkvBias, "biases on q, k and v"},
                                                        {Present::kAttnOutBias, "a bias on o"},
                                                        {Present::kMlpBias, "biases in the mlp"},
                                                        {Present::kQkNorm, "norms on q and k"}};
  for (const auto& [present, what] : flags) {
    if (!is_present(present, spec)) continue;
    const bool known = std::any_of(family.tensors.begin(), family.tensors.end(),
                                   [&](const TensorRow& row) { return row.present == present; });
    if (!known) problems.push_back(fmt::format("{} models have no {}", family.name, what));
  }
}

void check_dimensions(const ModelSpec& spec, const Family& family) {
  Problems problems;
  require_range(problems, "number of layers", spec.n_layers, 1, kMaxLayers);
  require_range(problems, "model width", spec.d_model, 1, kMaxWidth);
  require_range(problems, "vocabulary size", spec.n_vocab, 1, kMaxVocab);
  require_range(problems, "context length", spec.max_seq, 1, kMaxTokens);
  require_range(problems, "head_dim", spec.head_dim, 2, 1 << 16);
  if (spec.head_dim % 2 != 0)
    problems.push_back(fmt::format("head_dim is {}, expected an even number", spec.head_dim));
  if (spec.n_layers >= 1 && spec.n_layers <= kMaxLayers) check_layer_specs(problems, spec);
  if (problems.empty()) {
    int64_t most_heads = 1;  // that share one K/V head
    for (const LayerSpec& layer : spec.layers) most_heads = std::max(most_heads, layer.heads_per_group);
    const int64_t most_groups = kMaxWidth / (spec.head_dim * most_heads);
    check_layers(problems, spec, "number of kv heads", SpaceKind::kAttention, spec.layer_kv_heads,
                 most_groups);
    check_layers(problems, spec, "mlp width", SpaceKind::kMlp, spec.layer_d_ff, kMaxWidth);
  }
  require_positive(problems, "norm epsilon", spec.norm_eps);
  check_flags(problems, spec, family);
  if (!problems.empty()) fail("inconsistent model dimensions: {}", fmt::join(problems, "; "));
}

struct Axis {
  int64_t size;
  AxisUse use;
};

Axis axis_of(Extent extent, const ModelSpec& spec, int64_t layer) {
  const auto in_space = [&](size_t space, int64_t units, int64_t block) {
    return Axis{units * block, {static_cast<int64_t>(space), block}};
  };
  const auto index = static_cast<size_t>(std::max<int64_t>(layer, 0));
  switch (extent) {
    case Extent::kModel:
      return {spec.d_model, {}};
    case Extent::kVocab:
      return {spec.n_vocab, {}};
    case Extent::kHeadDim:
      return {spec.head_dim, {}};
    case Extent::kQueryHeads:
      return in_space(spec.attention_space(layer), spec.layer_kv_heads[index],
                      spec.layer(layer).heads_per_group * spec.head_dim);
    case Extent::kKeyValueHeads:
      return in_space(spec.attention_space(layer), spec.layer_kv_heads[index], spec.head_dim);
    case Extent::kFeedForward:
      return in_space(spec.mlp_space(layer), spec.layer_d_ff[index], 1);
    case Extent::kNone:
      break;
  }
  return {1, {}};
}

bool is_layer_row(const TensorRow& row) {
  return std::string_view(row.hf_name).find("{}") != std::string_view::npos;
}

/// Whether the layer has the half that a tensor of this role belongs to.
bool has_half(const ModelSpec& spec, Role role, int64_t layer) {
  const auto index = static_cast<size_t>(layer);
  return (is_attention(role) ? spec.layer_kv_heads : spec.layer_d_ff)[index] > 0;
}

void add_tensor(ModelSpec& spec, const TensorRow& row, int64_t layer) {
  if (!is_present(row.present, spec)) return;
  if (layer >= 0 && !has_half(spec, row.role, layer)) return;
  TensorSpec tensor{.role = row.role,
                    .layer = layer,
                    .name = fmt::format(fmt::runtime(row.hf_name), layer),
                    .gguf_name = fmt::format(fmt::runtime(row.gguf_name), layer),
                    .shape = {},
                    .axes = {}};
  for (const Extent extent : {row.rows, row.columns}) {
    if (extent == Extent::kNone) continue;
    const Axis axis = axis_of(extent, spec, layer);
    tensor.shape.push_back(axis.size);
    tensor.axes.push_back(axis.use);
  }
  spec.tensors.push_back(std::move(tensor));
}

int64_t count_params(const ModelSpec& spec, const Widths& widths, bool decoder_only) {
  int64_t sum = 0;
  for (const TensorSpec& tensor : spec.tensors) {
    if ((!decoder_only || tensor.layer >= 0) && is_kept(spec, tensor, widths))
      sum += n_elements(shape_at(tensor, widths));
  }
  return sum;
}

int64_t widest(const std::vector<int64_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

/// "3"; "3,1,3" if the numbers differ by layer.
std::string heads_per_group(const ModelSpec& spec) {
  std::vector<int64_t> numbers;
  for (const LayerSpec& layer : spec.layers) numbers.push_back(layer.heads_per_group);
  if (all_equal(numbers)) numbers.resize(1);
  return fmt::format("{}", fmt::join(numbers, ","));
}

}  // namespace

int64_t ModelSpec::n_kv_heads() const {
  return widest(layer_kv_heads);
}
int64_t ModelSpec::n_heads() const {
  int64_t most = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer)
    most = std::max(most, layer_kv_heads.at(layer) * layers[layer].heads_per_group);
  return most;
}
int64_t ModelSpec::d_ff() const {
  return widest(layer_d_ff);
}
bool ModelSpec::is_uniform() const {
  return all_equal(layer_kv_heads) && all_equal(layer_d_ff);
}

int64_t ModelSpec::find(Role role, int64_t layer) const {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].role == role && tensors[i].layer == layer) return static_cast<int64_t>(i);
  }
  return -1;
}

int64_t ModelSpec::find(std::string_view name) const {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name == name) return static_cast<int64_t>(i);
  }
  return -1;
}

void complete_spec(ModelSpec& spec) {
  const Family& family = family_named(spec.family);
  check_dimensions(spec, family);

  spec.spaces.clear();
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    spec.spaces.push_back(
        {fmt::format("layers.{}.attn", layer), SpaceKind::kAttention, layer, spec.layer_kv_heads[index]});
    spec.spaces.push_back(
        {fmt::format("layers.{}.mlp", layer), SpaceKind::kMlp, layer, spec.layer_d_ff[index]});
  }

  spec.tensors.clear();
  const auto& rows = family.tensors;
  for (auto row = rows.begin(); row != rows.end();) {
    if (!is_layer_row(*row)) {
      add_tensor(spec, *row++, -1);
      continue;
    }
    const auto end = std::find_if_not(row, rows.end(), is_layer_row);
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
      for (auto of_layer = row; of_layer != end; ++of_layer) add_tensor(spec, *of_layer, layer);
    }
    row = end;
  }
}

Widths full_widths(const ModelSpec& spec) {
  Widths widths;
  for (const AxisSpace& space : spec.spaces) widths.push_back(space.n_units);
  return widths;
}

Shape shape_at(const TensorSpec& tensor, const Widths& widths) {
  Shape shape = tensor.shape;
  for (size_t i = 0; i < shape.size(); ++i) {
    const AxisUse& use = tensor.axes[i];
    if (use.space >= 0) shape[i] = widths.at(static_cast<size_t>(use.space)) * use.block;
  }
  return shape;
}

bool is_kept(const ModelSpec& spec, const TensorSpec& tensor, const Widths& widths) {
  if (tensor.layer < 0) return true;
  const size_t half =
      is_attention(tensor.role) ? spec.attention_space(tensor.layer) : spec.mlp_space(tensor.layer);
  return widths.at(half) > 0;
}

void check_droppable(const ModelSpec& spec, const Widths& widths) {
  for (size_t i = 0; i < spec.spaces.size(); ++i) {
    const AxisSpace& space = spec.spaces[i];
    if (widths.at(i) != 0) continue;
    const int64_t kv_groups = widths[spec.attention_space(space.layer)];
    const std::string_view reason = why_kept(space.kind, space.layer, spec.n_layers, kv_groups);
    if (reason.empty()) continue;
    const bool with_attention = space.kind == SpaceKind::kMlp && kv_groups > 0;
    const bool last = space.layer == spec.n_layers - 1;
    throw Error(fmt::format("{}: width is 0{}, expected 1 to {}: {}", space.name,
                            with_attention ? fmt::format(" beside {} kv groups", kv_groups) : "",
                            space.n_units, reason),
                with_attention && !last ? "keep some neurons, or drop the layer's attention as well"
                                        : "keep some of its units, or drop another layer");
  }
}

void check_widths(const ModelSpec& spec, const Widths& widths) {
  if (widths.size() != spec.spaces.size())
    fail("widths are given for {} spaces, expected {}", widths.size(), spec.spaces.size());
  for (size_t i = 0; i < widths.size(); ++i) {
    const AxisSpace& space = spec.spaces[i];
    if (widths[i] < 0 || widths[i] > space.n_units)
      fail("{}: width is {}, expected {} to {}", space.name, widths[i],
           why_kept(space.kind, space.layer, spec.n_layers, widths[spec.attention_space(space.layer)]).empty()
               ? 0
               : 1,
           space.n_units);
  }
  check_droppable(spec, widths);
}

void require_all_halves(const ModelSpec& spec, std::string_view work) {
  for (const AxisSpace& space : spec.spaces)
    if (space.n_units == 0)
      throw Error(
          fmt::format("{} has no units: {} takes a model whose layers are complete", space.name, work),
          "this file is a level that leaves layers out; take the model it was made from");
}

ModelSpec narrowed(const ModelSpec& spec, const Widths& widths) {
  check_widths(spec, widths);
  ModelSpec narrow = spec;
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    narrow.layer_kv_heads[index] = widths[spec.attention_space(layer)];
    narrow.layer_d_ff[index] = widths[spec.mlp_space(layer)];
  }
  complete_spec(narrow);
  return narrow;
}

int64_t n_params(const ModelSpec& spec, const Widths& widths) {
  return count_params(spec, widths, false);
}

int64_t n_decoder_params(const ModelSpec& spec, const Widths& widths) {
  return count_params(spec, widths, true);
}

int64_t params_per_unit(const ModelSpec& spec, size_t space) {
  int64_t sum = 0;
  for (const TensorSpec& tensor : spec.tensors) {
    for (size_t i = 0; i < tensor.axes.size(); ++i) {
      if (tensor.axes[i].space != static_cast<int64_t>(space)) continue;
      sum += n_elements(tensor.shape) / spec.spaces[space].n_units;
    }
  }
  return sum;
}

std::string_view name_of(Role role) {
  static constexpr std::array<std::string_view, kRoles> kNames{"token embedding",
                                                               "output norm",
                                                               "output",
                                                               "norm before attention",
                                                               "q",
                                                               "k",
                                                               "v",
                                                               "o",
                                                               "q bias",
                                                               "k bias",
                                                               "v bias",
                                                               "o bias",
                                                               "q norm",
                                                               "k norm",
                                                               "norm before mlp",
                                                               "gate",
                                                               "up",
                                                               "down",
                                                               "gate bias",
                                                               "up bias",
                                                               "down bias",
                                                               "norm after attention",
                                                               "norm after mlp"};
  return kNames.at(static_cast<size_t>(role));
}

std::vector<std::string> layer_peculiarities(const ModelSpec& spec) {
  std::vector<std::string> found;
  const auto any = [&](auto&& is_so) { return std::any_of(spec.layers.begin(), spec.layers.end(), is_so); };
  const auto differs = [&](auto LayerSpec::*field) {
    return any([&](const LayerSpec& layer) { return layer.*field != spec.layers.front().*field; });
  };
  const bool has_post_norms =
      std::any_of(spec.tensors.begin(), spec.tensors.end(), [](const TensorSpec& tensor) {
        return tensor.role == Role::kAttnPostNorm || tensor.role == Role::kFfnPostNorm;
      });
  if (any([](const LayerSpec& layer) { return layer.activation != Activation::kSilu; }))
    found.emplace_back("gelu in the mlp");
  if (spec.output_norm_offset != 0 || any([](const LayerSpec& layer) { return layer.norm_offset != 0; }))
    found.emplace_back("norm weights with an offset");
  if (has_post_norms) found.emplace_back("norms after attention or mlp");
  if (differs(&LayerSpec::heads_per_group))
    found.emplace_back("query heads per kv head that differ by layer");
  if (differs(&LayerSpec::sliding_window)) found.emplace_back("sliding windows that differ by layer");
  if (differs(&LayerSpec::rope_theta) || differs(&LayerSpec::rope))
    found.emplace_back("rotary frequencies that differ by layer");
  return found;
}

// The hash leaves out numbers that sources round differently (epsilon, theta) and the family's name, so that
// a profile measured on a model's safetensors can be used with its GGUF file.
std::string spec_hash(const ModelSpec& spec) {
  Sha256 digest;
  digest.update(fmt::format("elastify.spec 1\nlayers {} head_dim {} heads_per_group {} tied {}\n",
                            spec.n_layers, spec.head_dim, heads_per_group(spec), spec.tied));
  for (const AxisSpace& space : spec.spaces) digest.update(fmt::format("{} {}\n", space.name, space.n_units));
  for (const TensorSpec& tensor : spec.tensors) {
    digest.update(fmt::format("{}", tensor.name));
    for (size_t i = 0; i < tensor.shape.size(); ++i)
      digest.update(fmt::format(" {}:{}:{}", tensor.shape[i], tensor.axes[i].space, tensor.axes[i].block));
    digest.update("\n");
  }
  return digest.finish();
}

std::vector<float> rope_frequency_divisors(const LayerSpec& layer, int64_t head_dim) {
  const RopeScaling& rope = layer.rope;
  if (rope.kind == RopeScaling::Kind::kFactors) return rope.factors;
  std::vector<float> divisors(static_cast<size_t>(head_dim / 2), 1.0F);
  if (rope.kind == RopeScaling::Kind::kNone) return divisors;
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (rope.kind == RopeScaling::Kind::kLinear) {
      divisors[i] = static_cast<float>(rope.factor);
      continue;
    }
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    const double wavelength = 2 * std::numbers::pi * std::pow(layer.rope_theta, exponent);
    const double turns = rope.original_max_seq / wavelength;  // within the context of pre-training
    if (turns > rope.high_freq_factor) continue;
    if (turns < rope.low_freq_factor) {
      divisors[i] = static_cast<float>(rope.factor);
      continue;
    }
    const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    divisors[i] = static_cast<float>(1 / ((1 - smooth) / rope.factor + smooth));
  }
  return divisors;
}

}  // namespace elastify
