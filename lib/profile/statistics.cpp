#include "profile/statistics.h"

#include <torch/torch.h>

#include <algorithm>

#include "base/error.h"
#include "nn/host_tensor.h"
#include "nn/kernels.h"

namespace elastify::profile {
namespace {

at::Tensor zeros(at::IntArrayRef shape) {
  return at::zeros(shape, at::TensorOptions().dtype(at::kDouble));
}

at::Tensor on_host(const at::Tensor& x) {
  return x.to(at::kCPU, at::kDouble);
}

size_t space_of(const ModelSpec& spec, int64_t layer, size_t half) {
  return half == 0 ? spec.attention_space(layer) : spec.mlp_space(layer);
}

constexpr Site kUnitSite[] = {Site::kAttnOut, Site::kFfnDown};
constexpr Role kUnitMatrix[] = {Role::kAttnOut, Role::kDown};

/// Sum over tokens of 1 - cos(x, y).
/// \param x, y  [B, T, D]
at::Tensor angle(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor a = x.to(at::kFloat), b = y.to(at::kFloat);
  const at::Tensor cosine =
      (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt().clamp_min(1e-30);
  return on_host((1 - cosine).sum(at::kDouble));
}

std::vector<float> to_floats(const at::Tensor& values) {
  const at::Tensor floats = values.to(at::kFloat).contiguous();
  return {floats.data_ptr<float>(), floats.data_ptr<float>() + floats.numel()};
}

/// Sums a tensor shaped like a weight over everything except the units of one of its axes.
/// \returns [n_units]
at::Tensor sum_by_unit(const at::Tensor& values, size_t axis, int64_t block) {
  int64_t before = 1, after = 1;
  for (size_t a = 0; a < static_cast<size_t>(values.dim()); ++a)
    if (a != axis) (a < axis ? before : after) *= values.size(static_cast<int64_t>(a));
  return values.reshape({before, values.size(static_cast<int64_t>(axis)) / block, block * after})
      .sum(at::IntArrayRef({0, 2}), false, at::kDouble);
}

at::Tensor load_weight(const Checkpoint& checkpoint, Role role, int64_t layer) {
  return nn::as_tensor(
      checkpoint.load(static_cast<size_t>(checkpoint.spec().find(role, layer)), DType::kF32));
}

}  // namespace

Wanted wanted_by(const std::vector<Metric>& metrics, bool second_moments) {
  Wanted wanted;
  for (const Metric metric : metrics) {
    wanted.gradients |= metric == Metric::kTaylor || metric == Metric::kFisher;
    wanted.weight_gradients |= metric == Metric::kTaylorElement;
    wanted.activation_norms |= metric == Metric::kActivation;
    wanted.second_moments |= needs_second_moments(metric);
  }
  wanted.second_moments |= second_moments;
  return wanted;
}

LayerStatistics LayerStatistics::zeros(const ModelSpec& spec, int64_t layer, const Wanted& wanted) {
  LayerStatistics result;
  for (const Site site : kSites) {
    if (!wanted.inputs) continue;
    const auto i = static_cast<size_t>(site);
    result.sums[i] = profile::zeros({n_inputs(spec, layer, site)});
    result.squares[i] = profile::zeros({n_inputs(spec, layer, site)});
  }
  if (wanted.inputs) result.influence = profile::zeros({3});
  for (size_t half = 0; half < 2; ++half) {
    const int64_t n_units = spec.spaces[space_of(spec, layer, half)].n_units;
    const int64_t n_columns = n_inputs(spec, layer, kUnitSite[half]);
    if (wanted.activation_norms) result.norms[half] = profile::zeros({n_units});
    if (wanted.gradients) {
      result.taylor[half] = profile::zeros({n_units});
      result.fisher[half] = profile::zeros({n_units});
    }
    if (wanted.second_moments) result.moments[half] = profile::zeros({n_columns, n_columns});
  }
  if (wanted.weight_gradients)
    for (const TensorSpec& tensor : spec.tensors)
      if (tensor.layer == layer && std::any_of(tensor.axes.begin(), tensor.axes.end(),
                                               [](const AxisUse& use) { return use.space >= 0; }))
        result.weight_gradients[tensor.role] = profile::zeros(tensor.shape);
  return result;
}

void LayerStatistics::for_each(const std::function<void(const std::string&, at::Tensor&)>& visit) {
  for (const Site site : kSites) {
    if (!influence.defined()) break;
    visit(fmt::format("{}/sum", name_of(site)), sums[static_cast<size_t>(site)]);
    visit(fmt::format("{}/squares", name_of(site)), squares[static_cast<size_t>(site)]);
  }
  if (influence.defined()) visit("influence", influence);
  for (size_t half = 0; half < 2; ++half)
    for (const auto& [name, tensor] : {std::pair{"norms", &norms[half]},
                                       {"taylor", &taylor[half]},
                                       {"fisher", &fisher[half]},
                                       {"moments", &moments[half]}})
      if (tensor->defined()) visit(fmt::format("{}/{}", half == 0 ? "attention" : "mlp", name), *tensor);
  for (auto& [role, tensor] : weight_gradients)
    visit(fmt::format("gradients/{}", static_cast<int>(role)), tensor);
}

void LayerStatistics::add(const nn::Decoder& decoder, int64_t layer, const nn::LayerTrace& trace) {
  for (const Site site : kSites) {
    const auto i = static_cast<size_t>(site);
    const at::Tensor x = decoder.site_input(layer, site, trace);
    const at::Tensor rows = x.view({-1, x.size(-1)});
    nn::add_column_sums(rows, sums[i], squares[i]);
    for (size_t half = 0; half < 2; ++half) {
      if (site != kUnitSite[half]) continue;
      if (moments[half].defined()) nn::add_moments(rows, moments[half]);
      if (norms[half].defined())
        norms[half] +=
            on_host(at::linalg_vector_norm(rows.to(at::kFloat).view({rows.size(0), norms[half].size(0), -1}),
                                           2, at::IntArrayRef({2}))
                        .sum(0, false, at::kDouble));
    }
  }
  influence += at::stack({angle(trace.input, trace.output), angle(trace.input, trace.middle),
                          angle(trace.middle, trace.output)});
}

at::Tensor LayerStatistics::add_backward(const nn::Decoder& decoder, int64_t layer, nn::LayerTrace trace,
                                         const at::Tensor& grad_output) {
  nn::WeightGradientSink sink;
  if (!weight_gradients.empty())
    sink = [&](Role role, const at::Tensor& gradient) { weight_gradients.at(role).add_(on_host(gradient)); };
  const nn::LayerGradients gradients = decoder.backward(layer, std::move(trace), grad_output, {}, sink);
  for (size_t half = 0; half < 2; ++half) {
    if (!taylor[half].defined()) continue;
    const at::Tensor& masks = half == 0 ? gradients.attention_masks : gradients.mlp_masks;
    const at::Tensor by_unit =
        on_host(masks).view({masks.size(0), taylor[half].size(0), -1}).sum(2);  // [B, n_units]
    taylor[half] += by_unit.abs().sum(0);
    fisher[half] += by_unit.square().sum(0);
  }
  return gradients.input;
}

std::vector<float> wanda_scores(const Checkpoint& checkpoint, size_t space,
                                const std::vector<double>& mean_squares) {
  const AxisSpace& found = checkpoint.spec().spaces[space];
  const bool mlp = found.kind == SpaceKind::kMlp;
  const at::Tensor weight = load_weight(checkpoint, mlp ? Role::kDown : Role::kAttnOut, found.layer);
  if (weight.size(1) != static_cast<int64_t>(mean_squares.size()))
    fail("{}: expected mean squares of {} columns, got {}", found.name, weight.size(1), mean_squares.size());
  const at::Tensor scores = weight.abs().mean(at::IntArrayRef({0}), false, at::kDouble) *
                            at::tensor(mean_squares, at::kDouble).sqrt();
  return to_floats(scores.view({found.n_units, -1}).sum(1));
}

std::map<Metric, std::array<std::vector<float>, 2>> layer_scores(const LayerStatistics& statistics,
                                                                 const Checkpoint& checkpoint, int64_t layer,
                                                                 const std::vector<Metric>& metrics,
                                                                 int64_t n_tokens) {
  const ModelSpec& spec = checkpoint.spec();
  std::map<Metric, std::array<std::vector<float>, 2>> scores;
  const auto n = static_cast<double>(n_tokens);
  for (const Metric metric : metrics)
    for (size_t half = 0; half < 2; ++half) {
      const size_t space = space_of(spec, layer, half);
      const auto site = static_cast<size_t>(kUnitSite[half]);
      const at::Tensor mean = statistics.sums[site] / n, mean_square = statistics.squares[site] / n;
      std::vector<float>& result = scores[metric][half];
      switch (metric) {
        case Metric::kTaylor:
          result = to_floats(statistics.taylor[half]);
          break;
        case Metric::kFisher:
          result = to_floats(statistics.fisher[half]);
          break;
        case Metric::kActivation:
          result = to_floats(statistics.norms[half] / n);
          break;
        case Metric::kWanda:
          result = wanda_scores(
              checkpoint, space,
              {mean_square.data_ptr<double>(), mean_square.data_ptr<double>() + mean_square.numel()});
          break;
        case Metric::kWifv: {
          const at::Tensor variance = (mean_square - mean.square()).clamp_min(0);
          const at::Tensor squares = load_weight(checkpoint, kUnitMatrix[half], layer)
                                         .square()
                                         .sum(at::IntArrayRef({0}), false, at::kDouble);
          result = to_floats((variance * squares).view({spec.spaces[space].n_units, -1}).sum(1));
          break;
        }
        case Metric::kTaylorElement: {
          at::Tensor total = zeros({spec.spaces[space].n_units});
          for (const auto& [role, gradient] : statistics.weight_gradients) {
            const TensorSpec& tensor = spec.tensors[static_cast<size_t>(spec.find(role, layer))];
            for (size_t axis = 0; axis < tensor.axes.size(); ++axis)
              if (tensor.axes[axis].space == static_cast<int64_t>(space))
                total += sum_by_unit((gradient * load_weight(checkpoint, role, layer)).abs(), axis,
                                     tensor.axes[axis].block);
          }
          result = to_floats(total);
          break;
        }
        case Metric::kMagnitude:
        case Metric::kRandom:
        case Metric::kImatrix:
        case Metric::kObs:
        case Metric::kForward:
        case Metric::kGram:
        case Metric::kHybrid:
          fail("metric '{}' is not measured on data", name_of(metric));
      }
    }
  return scores;
}

}  // namespace elastify::profile
