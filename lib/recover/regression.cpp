#include "recover/regression.h"

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "base/error.h"
#include "nn/kernels.h"
#include "recover/hold_out.h"

namespace elastify::recover {
namespace {

constexpr std::array<double, 5> kRidges{1e-3, 1e-2, 1e-1, 1, 10};
constexpr double kLeastShare = 0.05;  ///< of a change; a smaller one is dropped

at::Tensor zeros(at::IntArrayRef shape) {
  return at::zeros(shape, at::TensorOptions().dtype(at::kDouble));
}

/// Whether weights or an adapter are fitted, not only a bias.
bool regresses(const ClosedFormOptions& options) {
  return has(options.compensation, Compensation::kAdapter) || has(options.compensation, Compensation::kBaked);
}

at::Tensor from_lower(const at::Tensor& lower) {
  return lower.tril() + lower.tril(-1).t();
}

/// The least-squares fit of a projection to its sums.
class Regression {
 public:
  Regression(const at::Tensor& weight, const Sums& sums, const ClosedFormOptions& options, at::Tensor root)
      : options_(options),
        root_(std::move(root)),
        type_(weight.options()),
        now_(weight.to(at::kCPU, at::kDouble).t()),
        mean_x_(sums.x / sums.n),
        mean_y_(sums.y / sums.n) {
    // A sum is finite only if all its terms are. Not every LAPACK reports numbers that are not finite.
    for (const at::Tensor& each : {sums.x, sums.y, sums.xx, sums.xy})
      if (each.defined() && !std::isfinite(each.sum().item<double>()))
        throw Error("the activations of this layer are not finite",
                    "compute in f32, or in bf16 rather than f16");
    if (!regresses(options)) return;
    moments_ = from_lower(sums.xx / sums.n);
    cross_ = sums.xy / sums.n;
    scale_ = moments_.diagonal().mean().item<double>();
    if (!has(options.compensation, Compensation::kBias)) return;
    moments_ = moments_ - at::outer(mean_x_, mean_x_);
    cross_ = cross_ - at::outer(mean_x_, mean_y_);
  }

  struct Fit {
    at::Tensor weight;  ///< [k, D]
    at::Tensor a, b;    ///< adapter, which adds a b^T: [k, r], [D, r]
  };
  /// \param ridge  in units of the inputs' mean square
  Fit fit(double ridge, int64_t rank) const {
    const bool is_adapter = has(options_.compensation, Compensation::kAdapter) && rank > 0;
    if (!is_adapter && !has(options_.compensation, Compensation::kBaked)) return {now_, {}, {}};
    const at::Tensor regular = regularised(ridge);
    at::Tensor delta = change(regular);
    if (!is_adapter) return {now_ + delta, {}, {}};
    // The best change of that rank projects the change's outputs onto their leading directions.
    delta = seen(delta);
    const auto [values, vectors] = at::linalg_eigh(outputs(regular, delta));
    const int64_t n = std::min({rank, delta.size(0), delta.size(1)});
    const at::Tensor leading = vectors.narrow(1, vectors.size(1) - n, n), a = at::mm(delta, leading);
    const at::Tensor b = root_.defined() ? at::linalg_solve_triangular(root_.t(), leading, true) : leading;
    return {now_ + at::mm(a, b.t()), a, b};
  }

  nn::TensorRepair repair(const Fit& fit) const {
    nn::TensorRepair result;
    if (fit.a.defined()) {
      result.a = fit.a.t().contiguous().to(type_);
      result.b = fit.b.contiguous().to(type_);
    }
    if (has(options_.compensation, Compensation::kBaked))
      result.weight = fit.weight.t().contiguous().to(type_);
    if (has(options_.compensation, Compensation::kBias))
      result.bias = (mean_y_ - at::mv(fit.weight.t(), mean_x_)).to(type_);
    return result;
  }

  /// A part of the fit: its change of the weights times `share`.
  Fit part(const Fit& fit, double share) const {
    if (share >= 1) return fit;
    Fit part = fit;
    part.weight = at::lerp(now_, fit.weight, share);
    if (fit.a.defined()) part.a = fit.a * share;
    return part;
  }

  /// The share of the fit's change, from 0 to 1, with the least error on the tokens of these sums.
  double best_share(const Fit& fit) const {
    const at::Tensor change = seen(fit.weight - now_);
    const double slope = (change * seen(at::mm(moments_, now_) - cross_)).sum().item<double>();
    const double curvature = (change * seen(at::mm(moments_, fit.weight - now_))).sum().item<double>();
    return curvature > 0 ? std::clamp(-slope / curvature, 0., 1.) : 0;
  }

  /// Squared error of these weights per token, up to a constant, on the tokens of these sums.
  double error_of(const at::Tensor& weight) const {
    return (seen(weight) * seen(at::mm(moments_, weight) - 2 * cross_)).sum().item<double>();
  }

  /// See Sample::gains().
  at::Tensor gains(double ridge) const {
    const at::Tensor regular = regularised(ridge);
    const at::Tensor values = at::linalg_eigvalsh(outputs(regular, seen(change(regular))));
    return values.flip(0).narrow(0, 0, std::min(now_.size(0), now_.size(1))).clamp_min(0);
  }

 private:
  at::Tensor regularised(double ridge) const {
    at::Tensor regular = moments_.clone();
    regular.diagonal().add_(ridge * (scale_ > 0 ? scale_ : 1));  // weights of unused inputs do not change
    return regular;
  }
  /// Solves (S + ridge) delta = C - S W_S. The ridge shrinks the change, not the weights.
  at::Tensor change(const at::Tensor& regular) const {
    const auto [factor, failed] = at::linalg_cholesky_ex(regular);
    if (failed.item<int64_t>() != 0)
      fail("the second moments of the inputs are singular; a larger ridge helps");
    return at::cholesky_solve(cross_ - at::mm(moments_, now_), factor);
  }
  /// Transforms rows [.., D], so that their Euclidean norm is the norm of `rows` in the metric.
  at::Tensor seen(const at::Tensor& rows) const { return root_.defined() ? at::mm(rows, root_) : rows; }
  /// Second moments of a change's outputs, [D, D].
  static at::Tensor outputs(const at::Tensor& regular, const at::Tensor& delta) {
    return at::mm(delta.t(), at::mm(regular, delta));
  }

  const ClosedFormOptions& options_;
  at::Tensor root_;
  at::TensorOptions type_;
  at::Tensor now_;  ///< [k, D]
  at::Tensor mean_x_, mean_y_;
  at::Tensor moments_, cross_;  ///< undefined if only a bias is fitted
  double scale_ = 0;
};

/// The ridge whose fit has the least error on the sums of `judge`. The search starts in the middle and
/// descends, since the error has a single minimum.
double chosen_ridge(const Regression& fit, const Regression& judge, int64_t rank) {
  std::map<size_t, double> errors;
  const auto error = [&](size_t i) {
    if (i >= kRidges.size()) return std::numeric_limits<double>::infinity();  // -1, too
    const auto known = errors.find(i);
    return known != errors.end() ? known->second
                                 : errors[i] = judge.error_of(fit.fit(kRidges[i], rank).weight);
  };
  size_t best = kRidges.size() / 2;
  for (const int step : {-1, 1})
    while (error(best + static_cast<size_t>(step)) < error(best)) best += static_cast<size_t>(step);
  return kRidges[best];
}

}  // namespace

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

at::Tensor token_weights(const at::Tensor& stream, const ClosedFormOptions& options) {
  const at::Tensor size = rows_of(stream).to(at::kFloat).square().mean(1, true);
  return options.weigh_tokens ? size.clamp_min(1e-12).reciprocal() : at::ones_like(size);
}

Sums::Sums(int64_t n_inputs, int64_t n_outputs, bool products) : x(zeros({n_inputs})), y(zeros({n_outputs})) {
  if (!products) return;
  xx = zeros({n_inputs, n_inputs});
  xy = zeros({n_inputs, n_outputs});
}

void Sums::add(const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& weights) {
  const at::Tensor a = inputs.to(at::kFloat), b = targets.to(at::kFloat), w = weights.to(at::kFloat);
  if (xx.defined()) {
    const at::Tensor root = w.sqrt(), half_weighted = a * root;
    nn::add_moments(half_weighted, xx);
    xy += at::mm(half_weighted.t(), b * root).to(at::kCPU, at::kDouble);
  }
  x += (a * w).sum(0, false, at::kDouble).to(at::kCPU);
  y += (b * w).sum(0, false, at::kDouble).to(at::kCPU);
  n += w.sum(at::kDouble).item<double>();
}

Sums Sums::operator+(const Sums& other) const {
  Sums sum = *this;
  if (xx.defined()) {
    sum.xx = xx + other.xx;
    sum.xy = xy + other.xy;
  }
  sum.x = x + other.x;
  sum.y = y + other.y;
  sum.n = n + other.n;
  return sum;
}

Sums Sums::leading(int64_t n_inputs) const {
  Sums part = *this;
  if (xx.defined()) {
    part.xx = xx.narrow(0, 0, n_inputs).narrow(1, 0, n_inputs);
    part.xy = xy.narrow(0, 0, n_inputs);
  }
  part.x = x.narrow(0, 0, n_inputs);
  return part;
}

Sample::Sample(int64_t n_inputs, int64_t n_outputs, size_t n_batches, const ClosedFormOptions& options)
    : fitted_(n_inputs, n_outputs, regresses(options)),
      held_out_(n_inputs, n_outputs, regresses(options)),
      n_batches_(n_batches),
      holds_out_(options.ridge == 0 || options.guard) {}

void Sample::add(size_t batch, const at::Tensor& inputs, const at::Tensor& targets,
                 const at::Tensor& weights) {
  (holds_out_ && is_held_out(batch, n_batches_) ? held_out_ : fitted_).add(inputs, targets, weights);
}

Sums Sample::all() const {
  return held_out_.n > 0 ? fitted_ + held_out_ : fitted_;
}

double Sample::ridge(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
                     const at::Tensor& root) const {
  if (options.ridge > 0) return options.ridge;
  if (held_out_.n == 0 || !regresses(options)) return kRidges.front();
  const int64_t n = weight.size(1);
  return chosen_ridge(Regression(weight, fitted_.leading(n), options, root),
                      Regression(weight, held_out_.leading(n), options, root), rank);
}

double Sample::share(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
                     const at::Tensor& root, double ridge) const {
  if (!options.guard || held_out_.n == 0 || !regresses(options)) return 1;
  const int64_t n = weight.size(1);
  const Regression fit(weight, fitted_.leading(n), options, root);
  const double share =
      Regression(weight, held_out_.leading(n), options, root).best_share(fit.fit(ridge, rank));
  return share < kLeastShare ? 0 : share;
}

Sample::Result Sample::repair(const at::Tensor& weight, const ClosedFormOptions& options, int64_t rank,
                              const at::Tensor& root) const {
  const double size = ridge(weight, options, rank, root);
  Result result{.repair = {}, .share = share(weight, options, rank, root, size)};
  if (result.share == 0 && !has(options.compensation, Compensation::kBias)) return result;
  const Regression regression(weight, all(), options, root);
  result.repair = regression.repair(regression.part(regression.fit(size, rank), result.share));
  return result;
}

at::Tensor Sample::gains(const at::Tensor& weight, const ClosedFormOptions& options,
                         const at::Tensor& root) const {
  ClosedFormOptions whole = options;
  whole.compensation =
      has(options.compensation, Compensation::kBias) ? Compensation::kBakedBias : Compensation::kBaked;
  return Regression(weight, all().leading(weight.size(1)), whole, root).gains(ridge(weight, whole, 0, root));
}

}  // namespace elastify::recover
