#include "recover/closed_form.h"

#include <torch/torch.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/progress.h"
#include "nn/torch_error.h"

namespace elastify::recover {
namespace {

struct Named {
  Compensation compensation;
  std::string_view name;
};
constexpr Named kNames[] = {{Compensation::kNone, "none"},       {Compensation::kBias, "bias"},
                            {Compensation::kAdapter, "adapter"}, {Compensation::kAdapterBias, "adapter+bias"},
                            {Compensation::kBaked, "baked"},     {Compensation::kBakedBias, "baked+bias"}};

bool has_bias(Compensation c) {
  return c == Compensation::kBias || c == Compensation::kAdapterBias || c == Compensation::kBakedBias;
}
bool has_adapter(Compensation c) {
  return c == Compensation::kAdapter || c == Compensation::kAdapterBias;
}
bool is_baked(Compensation c) {
  return c == Compensation::kBaked || c == Compensation::kBakedBias;
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
    if (!has_bias(options.compensation)) return;
    moments_ = moments_ - at::outer(mean_x_, mean_x_);
    cross_ = cross_ - at::outer(mean_x_, mean_y_);
  }

  /// Of the fitted weights. \param ridge  in units of the inputs' mean square
  nn::ProjectionRepair repair(double ridge) const {
    nn::ProjectionRepair result;
    at::Tensor fitted = now_;
    if (options_.compensation != Compensation::kBias) {
      const at::Tensor regular = regularised(ridge);
      at::Tensor delta = change(regular);
      if (has_adapter(options_.compensation)) {
        const at::Tensor leading = leading_outputs(regular, delta);  // [D, r]
        const at::Tensor a = at::mm(delta, leading);                 // [k, r]
        result.a = a.t().contiguous().to(type_);
        result.b = leading.contiguous().to(type_);
        delta = at::mm(a, leading.t());
      }
      fitted = now_ + delta;
      if (is_baked(options_.compensation)) result.weight = fitted.t().contiguous().to(type_);
    }
    if (has_bias(options_.compensation)) result.bias = (mean_y_ - at::mv(fitted.t(), mean_x_)).to(type_);
    return result;
  }

  /// Squared error per token, but for a constant, of what is fitted here on the tokens of `other`.
  double error_on(const Regression& other, double ridge) const {
    const at::Tensor regular = regularised(ridge);
    at::Tensor delta = change(regular);
    if (has_adapter(options_.compensation)) {
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
    if (ridge == 0 && options.compensation != Compensation::kBias) {
      ridge = kRidges[0];
      if (held_out_.n > 0) {
        const Regression fit(weight, fitted_, options), judge(weight, held_out_, options);
        double least = std::numeric_limits<double>::infinity();
        for (const double candidate : kRidges) {
          const double error = fit.error_on(judge, candidate);
          if (error < least) {
            least = error;
            ridge = candidate;
          }
        }
      }
    }
    if (held_out_.n > 0) fitted_.add(held_out_);
    return Regression(weight, fitted_, options).repair(ridge);
  }

 private:
  static constexpr size_t kHeldOut = 5;
  static constexpr double kRidges[] = {1e-3, 1e-2, 1e-1, 1, 10};
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

}  // namespace

std::string_view name_of(Compensation compensation) {
  for (const Named& known : kNames)
    if (known.compensation == compensation) return known.name;
  fail("unknown compensation {}", static_cast<int>(compensation));
}

Compensation compensation_named(std::string_view name) {
  std::string known;
  for (const Named& one : kNames) {
    if (one.name == name) return one.compensation;
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  throw UsageError(fmt::format("unknown compensation '{}'; known are {}", name, known));
}

std::vector<nn::LayerRepair> fit_level(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                       const Widths& widths, const ClosedFormOptions& options) {
  const ModelSpec& spec = decoder.spec();
  std::vector<nn::LayerRepair> repairs(static_cast<size_t>(spec.n_layers));
  if (options.compensation == Compensation::kNone) return repairs;
  if (batches.empty()) fail("closed-form compensation needs calibration data");
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    nn::ForwardOptions level;
    level.widths = &widths;
    level.repairs = &repairs;
    nn::ForwardOptions attend = level, transform = level;
    attend.half = nn::Half::kAttention;
    transform.half = nn::Half::kMlp;
    int64_t n_tokens = 0;
    for (const at::Tensor& ids : batches) n_tokens += ids.numel();
    Progress progress("compensation", n_tokens * spec.n_layers, "layer-tokens");
    // Residual streams of the full model and of the level, by batch.
    std::vector<at::Tensor> full, narrow;
    for (const at::Tensor& ids : batches) {
      full.push_back(decoder.embed(ids));
      narrow.push_back(full.back());
    }
    for (int64_t l = 0; l < spec.n_layers; ++l) {
      nn::LayerRepair& repair = repairs[static_cast<size_t>(l)];
      const at::Tensor o = decoder.projection(l, Site::kAttnOut, widths);
      const at::Tensor down = decoder.projection(l, Site::kFfnDown, widths);
      // Where a half is left out, there is nothing to regress on.
      const bool attends = o.size(1) > 0, has_mlp = down.size(1) > 0;
      // What the full model adds to its stream in the two halves, less what is wrong with the stream already.
      std::vector<at::Tensor> outputs, middles;  // of the full model
      const bool holds_out = options.ridge == 0 && batches.size() > 1;
      Sample attention(o.size(1), o.size(0), holds_out), mlp(down.size(1), down.size(0), holds_out);
      for (size_t b = 0; b < batches.size(); ++b) {
        const nn::LayerTrace whole = decoder.trace(l, full[b]);
        const at::Tensor& base = options.whole_stream ? narrow[b] : full[b];
        if (attends)
          attention.add(b, rows_of(decoder.trace(l, narrow[b], attend).attention),
                        without(whole.middle - base, decoder.projection_bias(l, Site::kAttnOut)),
                        token_weights(whole.middle, options));
        middles.push_back(whole.middle);
        outputs.push_back(whole.output);
      }
      if (attends) repair.attention_out = attention.solve(o, options);
      std::vector<at::Tensor> narrow_middles;
      for (size_t b = 0; b < batches.size(); ++b) {
        narrow_middles.push_back(decoder.layer(l, narrow[b], attend));
        if (!has_mlp) continue;
        const nn::LayerTrace part = decoder.trace(l, narrow_middles[b], transform);
        const at::Tensor& base = options.whole_stream ? narrow_middles[b] : middles[b];
        mlp.add(b, rows_of(decoder.site_input(l, Site::kFfnDown, part)),
                without(outputs[b] - base, decoder.projection_bias(l, Site::kFfnDown)),
                token_weights(outputs[b], options));
      }
      if (has_mlp) repair.down = mlp.solve(down, options);
      for (size_t b = 0; b < batches.size(); ++b) {
        full[b] = outputs[b];
        narrow[b] = options.sequential ? decoder.layer(l, narrow_middles[b], transform) : full[b];
        progress.advance(batches[b].numel());
      }
    }
    return repairs;
  });
}

}  // namespace elastify::recover
