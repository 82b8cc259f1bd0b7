#include "recover/closed_form.h"

#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/progress.h"
#include "nn/torch_error.h"
#include "recover/output_norm.h"

namespace elastify::recover {
namespace {

/// In the order in which a name lists them.
constexpr std::pair<Compensation, std::string_view> kParts[] = {{Compensation::kAdapter, "adapter"},
                                                                {Compensation::kBaked, "baked"},
                                                                {Compensation::kBias, "bias"},
                                                                {Compensation::kNorm, "norm"}};
constexpr unsigned kAllParts = 16;

/// Whether the parts go together.
bool is_one(Compensation compensation) {
  return !has(compensation, Compensation::kAdapter) || !has(compensation, Compensation::kBaked);
}

bool refits_weights(const ClosedFormOptions& options) {
  return has(options.compensation, Compensation::kAdapter) || has(options.compensation, Compensation::kBaked);
}

/// Sums over tokens for one projection: inputs x [k] and targets y [D], float64.
struct Sums {
  at::Tensor xx, xy, x, y;
  double n = 0;

  Sums(int64_t n_inputs, int64_t n_outputs)
      : xx(zeros({n_inputs, n_inputs})),
        xy(zeros({n_inputs, n_outputs})),
        x(zeros({n_inputs})),
        y(zeros({n_outputs})) {}

  /// \param inputs [rows, k], targets [rows, D], weights [rows, 1]  of the rows' squared errors
  void add(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights) {
    const at::Tensor a = inputs.to(at::kFloat), b = targets.to(at::kFloat), w = weights.to(at::kFloat);
    const at::Tensor weighted = a * w;
    xx += at::mm(weighted.t(), a).to(at::kCPU, at::kDouble);
    xy += at::mm(weighted.t(), b).to(at::kCPU, at::kDouble);
    x += weighted.sum(0, false, at::kDouble).to(at::kCPU);
    y += (b * w).sum(0, false, at::kDouble).to(at::kCPU);
    n += w.sum(at::kDouble).item<double>();
  }
  void add(const Sums& other) {
    xx += other.xx;
    xy += other.xy;
    x += other.x;
    y += other.y;
    n += other.n;
  }

 private:
  static at::Tensor zeros(at::IntArrayRef shape) {
    return at::zeros(shape, at::TensorOptions().dtype(at::kDouble));
  }
};

/// A projection's fit to what its sums say.
class Regression {
 public:
  /// \param weight  as it is, [D, k]
  Regression(const at::Tensor& weight, const Sums& sums, const ClosedFormOptions& options)
      : options_(options),
        type_(weight.options()),
        now_(weight.to(at::kCPU, at::kDouble).t()),
        mean_x_(sums.x / sums.n),
        mean_y_(sums.y / sums.n),
        moments_(sums.xx / sums.n),
        cross_(sums.xy / sums.n),
        scale_(moments_.diagonal().mean().item<double>()) {
    if (!has(options.compensation, Compensation::kBias)) return;
    moments_ = moments_ - at::outer(mean_x_, mean_x_);
    cross_ = cross_ - at::outer(mean_x_, mean_y_);
  }

  /// Of the fitted weights.
  /// \param ridge  in units of the inputs' mean square
  nn::ProjectionRepair repair(double ridge) const {
    nn::ProjectionRepair result;
    at::Tensor fitted = now_;
    if (refits_weights(options_)) {
      const at::Tensor regular = regularised(ridge);
      at::Tensor delta = change(regular);
      if (has(options_.compensation, Compensation::kAdapter)) {
        const at::Tensor leading = leading_outputs(regular, delta);  // [D, r]
        const at::Tensor a = at::mm(delta, leading);                 // [k, r]
        result.a = a.t().contiguous().to(type_);
        result.b = leading.contiguous().to(type_);
        delta = at::mm(a, leading.t());
      }
      fitted = now_ + delta;
      if (has(options_.compensation, Compensation::kBaked)) result.weight = fitted.t().contiguous().to(type_);
    }
    if (has(options_.compensation, Compensation::kBias))
      result.bias = (mean_y_ - at::mv(fitted.t(), mean_x_)).to(type_);
    return result;
  }

  /// Squared error per token, but for a constant, of what is fitted here on the tokens of `other`.
  double error_on(const Regression& other, double ridge) const {
    const at::Tensor regular = regularised(ridge);
    at::Tensor delta = change(regular);
    if (has(options_.compensation, Compensation::kAdapter)) {
      const at::Tensor leading = leading_outputs(regular, delta);
      delta = at::mm(at::mm(delta, leading), leading.t());
    }
    const at::Tensor fitted = now_ + delta;
    return (fitted * (at::mm(other.moments_, fitted) - 2 * other.cross_)).sum().item<double>();
  }

 private:
  at::Tensor regularised(double ridge) const {
    return moments_ + ridge * scale_ * at::eye(moments_.size(0), moments_.options());
  }
  /// (S + ridge) delta = C - S W_S: the ridge pulls the change to nothing, not the weights.
  at::Tensor change(const at::Tensor& regular) const {
    const auto [factor, failed] = at::linalg_cholesky_ex(regular);
    if (failed.item<int64_t>() != 0) fail("the inputs' moments are singular; a larger ridge helps");
    return at::cholesky_solve(cross_ - at::mm(moments_, now_), factor);
  }
  /// The best rank-r change is the projection of the change's outputs onto their leading directions.
  at::Tensor leading_outputs(const at::Tensor& regular, const at::Tensor& delta) const {
    const at::Tensor outputs = at::mm(delta.t(), at::mm(regular, delta));  // [D, D]
    const auto [values, vectors] = at::linalg_eigh(outputs);
    const int64_t rank = std::min({options_.rank, delta.size(0), delta.size(1)});
    return vectors.narrow(1, vectors.size(1) - rank, rank);
  }

  const ClosedFormOptions& options_;
  at::TensorOptions type_;
  at::Tensor now_;  ///< [k, D]
  at::Tensor mean_x_, mean_y_, moments_, cross_;
  double scale_;
};

/// What a projection is fitted on: every kHeldOut-th batch apart, to choose the ridge by.
class Sample {
 public:
  Sample(int64_t n_inputs, int64_t n_outputs, bool holds_out)
      : fitted_(n_inputs, n_outputs), held_out_(n_inputs, n_outputs), holds_out_(holds_out) {}

  void add(size_t batch, const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights) {
    (holds_out_ && batch % kHeldOut == kHeldOut - 1 ? held_out_ : fitted_).add(inputs, targets, weights);
  }

  nn::ProjectionRepair solve(const at::Tensor& weight, const ClosedFormOptions& options) {
    double ridge = options.ridge;
    if (ridge == 0 && options.compensation != Compensation::kBias) ridge = chosen_ridge(weight, options);
    if (held_out_.n > 0) fitted_.add(held_out_);
    return Regression(weight, fitted_, options).repair(ridge);
  }

 private:
  /// From the middle down the slope: the error has one valley.
  double chosen_ridge(const at::Tensor& weight, const ClosedFormOptions& options) const {
    if (held_out_.n == 0) return kRidges.front();
    const Regression fit(weight, fitted_, options), judge(weight, held_out_, options);
    std::map<size_t, double> errors;
    const auto error = [&](size_t i) {
      if (i >= kRidges.size()) return std::numeric_limits<double>::infinity();  // -1, too
      const auto known = errors.find(i);
      return known != errors.end() ? known->second : errors[i] = fit.error_on(judge, kRidges[i]);
    };
    size_t best = kRidges.size() / 2;
    for (const int step : {-1, 1})
      while (error(best + static_cast<size_t>(step)) < error(best)) best += static_cast<size_t>(step);
    return kRidges[best];
  }

  static constexpr size_t kHeldOut = 5;
  static constexpr std::array<double, 5> kRidges{1e-3, 1e-2, 1e-1, 1, 10};
  Sums fitted_, held_out_;
  bool holds_out_;
};

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

/// What a token's squared error counts: by the size of the stream that the next norm divides it by. In some
/// models the first token's stream is hundreds of times as large as any other's and would decide the fit.
at::Tensor token_weights(const at::Tensor& stream, const ClosedFormOptions& options) {
  const at::Tensor size = rows_of(stream).to(at::kFloat).square().mean(1, true);
  return options.weigh_tokens ? size.clamp_min(1e-12).reciprocal() : at::ones_like(size);
}

/// Rows of y less the constant that the projection adds anyway.
at::Tensor without(const at::Tensor& y, const at::Tensor& bias) {
  return bias.defined() ? rows_of(y) - bias : rows_of(y);
}

/// One layer of one level.
class LevelFit {
 public:
  LevelFit(const nn::Decoder& decoder, int64_t layer, const Widths& widths, nn::LevelRepair& repairs,
           const ClosedFormOptions& options)
      : decoder_(decoder), layer_(layer), widths_(widths), repairs_(repairs), options_(options) {}

  /// Fits o or down and moves the level's stream past that half of the layer.
  /// \param before, after  the full model's stream around that half, by batch
  /// \param stream  the level's
  void fit(Site site, const std::vector<at::Tensor>& before, const std::vector<at::Tensor>& after,
           std::vector<at::Tensor>& stream) const {
    const at::Tensor weight = decoder_.projection(layer_, site, widths_);
    if (weight.size(1) == 0) return;  // that half is left out, and there is nothing to regress on
    nn::ForwardOptions level, inputs;
    level.widths = inputs.widths = &widths_;
    level.repairs = &repairs_;
    inputs.half = site == Site::kAttnOut ? nn::Half::kAttention : nn::Half::kMlp;
    inputs.projects = false;
    const at::Tensor bias = decoder_.projection_bias(layer_, site);
    Sample sample(weight.size(1), weight.size(0), options_.ridge == 0 && stream.size() > 1);
    std::vector<at::Tensor> kept;
    for (size_t b = 0; b < stream.size(); ++b) {
      const nn::LayerTrace trace = decoder_.trace(layer_, stream[b], inputs);
      kept.push_back(decoder_.site_input(layer_, site, trace));
      // What the full model adds to its stream here, less what is wrong with the level's already.
      const at::Tensor& base = *options_.whole_stream ? stream[b] : before[b];
      sample.add(b, rows_of(kept.back()), without(after[b] - base, bias), token_weights(after[b], options_));
    }
    nn::LayerRepair& repair = repairs_.layers[static_cast<size_t>(layer_)];
    (site == Site::kAttnOut ? repair.attention_out : repair.down) = sample.solve(weight, options_);
    for (size_t b = 0; b < stream.size(); ++b)
      stream[b] = decoder_.add_projection(layer_, site, stream[b], std::exchange(kept[b], {}), level);
  }

 private:
  const nn::Decoder& decoder_;
  int64_t layer_;
  const Widths& widths_;
  nn::LevelRepair& repairs_;
  const ClosedFormOptions& options_;
};

/// \param repairs  of each level; takes the layers'
void fit_projections(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                     const std::vector<Widths>& levels, const ClosedFormOptions& options,
                     std::vector<nn::LevelRepair>& repairs) {
  const int64_t n_layers = decoder.spec().n_layers;
  int64_t n_tokens = 0;
  for (const at::Tensor& ids : batches) n_tokens += ids.numel();
  Progress progress("compensation", n_tokens * n_layers * static_cast<int64_t>(levels.size()),
                    "layer-tokens");
  std::vector<at::Tensor> full;  // residual streams by batch
  for (const at::Tensor& ids : batches) full.push_back(decoder.embed(ids));
  std::vector<std::vector<at::Tensor>> narrow(levels.size(), full);
  for (int64_t l = 0; l < n_layers; ++l) {
    std::vector<at::Tensor> middles, outputs;
    for (const at::Tensor& stream : full) {
      const nn::LayerTrace trace = decoder.trace(l, stream);
      middles.push_back(trace.middle);
      outputs.push_back(trace.output);
    }
    for (size_t i = 0; i < levels.size(); ++i) {
      with_context(fmt::format("layers.{}", l), [&] {
        const LevelFit level(decoder, l, levels[i], repairs[i], options);
        level.fit(Site::kAttnOut, full, middles, narrow[i]);
        level.fit(Site::kFfnDown, middles, outputs, narrow[i]);
      });
      if (!*options.sequential) narrow[i] = outputs;
      progress.advance(n_tokens);
    }
    full = std::move(outputs);
  }
}

}  // namespace

std::string name_of(Compensation compensation) {
  std::string name;
  for (const auto& [part, word] : kParts)
    if (has(compensation, part)) {
      if (!name.empty()) name += '+';
      name += word;
    }
  return name.empty() ? "none" : name;
}

std::vector<std::string> compensation_names() {
  std::vector<std::string> names;
  for (unsigned bits = 0; bits < kAllParts; ++bits)
    if (const auto each = static_cast<Compensation>(bits); is_one(each)) names.push_back(name_of(each));
  return names;
}

Compensation compensation_named(std::string_view name) {
  unsigned bits = 0;
  bool known = true;
  for (std::string_view rest = name; known && name != "none";) {
    const size_t end = std::min(rest.find('+'), rest.size());
    const auto part = std::find_if(std::begin(kParts), std::end(kParts),
                                   [&](const auto& each) { return each.second == rest.substr(0, end); });
    known = part != std::end(kParts);
    if (known) bits |= static_cast<unsigned>(part->first);
    if (end == rest.size()) break;
    rest.remove_prefix(end + 1);
  }
  const auto compensation = static_cast<Compensation>(bits);
  if (!known || !is_one(compensation))
    throw UsageError(
        fmt::format("unknown compensation '{}'; known are {}", name, fmt::join(compensation_names(), ", ")));
  return compensation;
}

std::vector<nn::LevelRepair> fit_levels(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                        const std::vector<Widths>& levels, const ClosedFormOptions& given) {
  const ClosedFormOptions options = resolved(given);
  std::vector<nn::LevelRepair> repairs(levels.size());
  for (nn::LevelRepair& level : repairs) level.layers.resize(static_cast<size_t>(decoder.spec().n_layers));
  if (options.compensation == Compensation::kNone || levels.empty()) return repairs;
  if (batches.empty()) fail("closed-form compensation needs calibration data");
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    if (options.compensation != Compensation::kNorm)
      fit_projections(decoder, batches, levels, options, repairs);
    if (has(options.compensation, Compensation::kNorm)) fit_output_norms(decoder, batches, levels, repairs);
    return repairs;
  });
}

nn::LevelRepair fit_level(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                          const Widths& widths, const ClosedFormOptions& options) {
  return std::move(fit_levels(decoder, batches, {widths}, options).front());
}

}  // namespace elastify::recover
