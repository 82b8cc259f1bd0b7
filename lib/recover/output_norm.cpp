#include "recover/output_norm.h"

#include <torch/torch.h>

#include <algorithm>
#include <utility>

#include "base/progress.h"
#include "recover/hold_out.h"

namespace elastify::recover {
namespace {

constexpr int64_t kRows = 4096;  ///< least number of predictions to compare
constexpr int64_t kRowsPerWeight = 8;
constexpr int kEvaluations = 6;  ///< of the divergence per search; more gain almost nothing

/// Token ids of some sequences, [B, T] each.
using Batches = std::vector<at::Tensor>;

/// Sequences spread over the calibration text, divided into fitted and held-out ones.
struct Split {
  Batches fitted, held_out;

  explicit Split(const Batches& all, int64_t n_rows) {
    const at::Tensor ids = at::cat(all);
    const auto least = static_cast<int64_t>(kHoldOutEvery);
    const int64_t n = std::min(std::max((n_rows + ids.size(1) - 1) / ids.size(1), least), ids.size(0));
    std::vector<int64_t> most, rest;
    for (int64_t i = 0; i < n; ++i)
      (is_held_out(static_cast<size_t>(i), static_cast<size_t>(n)) ? rest : most)
          .push_back(i * ids.size(0) / n);
    const auto take = [&](const std::vector<int64_t>& which) {
      return ids.index_select(0, at::tensor(which, at::kLong)).split(all.front().size(0));
    };
    fitted = take(most);
    held_out = rest.empty() ? fitted : take(rest);
  }
};

/// Hidden states after the full model's output norm, [n, D]. It runs layer by layer over all batches, so that
/// a streamed decoder loads each layer once.
at::Tensor hidden(const nn::Decoder& decoder, const Batches& batches, const nn::ForwardOptions& options) {
  Batches streams;
  for (const at::Tensor& ids : batches) streams.push_back(decoder.embed(ids));
  for (int64_t l = 0; l < decoder.spec().n_layers; ++l)
    for (at::Tensor& stream : streams) stream = decoder.layer(l, stream, options);
  for (at::Tensor& stream : streams)
    stream = decoder.final_norm(stream).reshape({-1, decoder.spec().d_model});
  return at::cat(streams);
}

/// Divergence from the full model of a level whose hidden states are multiplied by factors.
class Divergence {
 public:
  /// \param hidden  the level's, [n, D]
  /// \param wanted  mean row of the output matrix under the full model's predictions, [n, D]
  Divergence(const nn::Decoder& decoder, at::Tensor hidden, at::Tensor wanted)
      : decoder_(&decoder), hidden_(std::move(hidden)), wanted_(std::move(wanted)) {}

  Divergence leading(int64_t n) const {
    return {*decoder_, hidden_.narrow(0, 0, n), wanted_.narrow(0, 0, n)};
  }

  /// The divergence per token, up to a constant that depends only on the full model.
  /// \param factors  float64 on the CPU, [D] or [1]
  /// \param gradient  receives the gradient by the factors, [D]; may be null
  double at(const at::Tensor& factors, at::Tensor* gradient = nullptr) const {
    const at::Tensor scaled = hidden_ * factors.to(hidden_.options());
    const nn::Decoder::Partition expected = decoder_->partition(scaled);
    const auto n = static_cast<double>(hidden_.size(0));
    if (gradient != nullptr) {
      const at::Tensor slope = (expected.mean - wanted_).to(at::kFloat) * hidden_;
      *gradient = slope.sum(0, false, at::kDouble).to(at::kCPU) / n;
    }
    const at::Tensor agreed = scaled.to(at::kFloat) * wanted_;
    return (expected.log_sum.sum(at::kDouble) - agreed.sum(at::kDouble)).item<double>() / n;
  }

  /// Factors near `start` at which the divergence is least; a single common factor if `start` has one
  /// element.
  /// \param unit  scale of each factor's change, about the distance to the minimum
  at::Tensor minimum(const at::Tensor& start, const at::Tensor& unit) const {
    at::Tensor change = at::zeros_like(start);
    change.set_requires_grad(true);
    torch::optim::LBFGS search({change}, torch::optim::LBFGSOptions(1)
                                             .max_iter(kEvaluations)
                                             .max_eval(kEvaluations)
                                             .tolerance_grad(1e-4)
                                             .tolerance_change(1e-4)
                                             .line_search_fn("strong_wolfe"));
    search.step([&] {
      const c10::NoGradGuard no_gradients;
      at::Tensor gradient;
      const double value = this->at(start + change * unit, &gradient);
      change.mutable_grad() = (start.numel() == 1 ? gradient.sum().view({1}) : gradient) * unit;
      return at::scalar_tensor(value, start.options());
    });
    return start + change.detach() * unit;
  }

  /// The change of a factor that changes its part of the logits by about one: one over the root of the
  /// curvature, for equally likely tokens.
  at::Tensor units() const {
    const at::Tensor variance = decoder_->output_weight().to(at::kFloat).var(0);
    return (hidden_.to(at::kFloat).square().mean(0) * variance)
        .clamp_min(1e-12)
        .rsqrt()
        .to(at::kCPU, at::kDouble);
  }

 private:
  const nn::Decoder* decoder_;
  at::Tensor hidden_, wanted_;
};

/// First fits one common factor, on few tokens, then one factor for each weight. Takes the step between them
/// that is best on held-out text.
at::Tensor best_factors(const Divergence& fitted, const Divergence& held_out, int64_t n_fitted) {
  const at::Tensor none = at::ones({1}, at::TensorOptions().dtype(at::kDouble));
  const at::Tensor common = fitted.leading(std::max<int64_t>(1, n_fitted / 4)).minimum(none, 0.5 * none);
  const at::Tensor units = fitted.units();
  const at::Tensor each = fitted.minimum(common.expand_as(units).contiguous(), units);
  at::Tensor best = none.expand_as(units);
  double least = held_out.at(best);
  for (const double share : {0., 0.25, 0.5, 0.75, 1.}) {
    const at::Tensor factors = common + share * (each - common);
    if (const double value = held_out.at(factors); value < least) {
      least = value;
      best = factors;
    }
  }
  return best;
}

}  // namespace

void fit_output_norms(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                      const std::vector<Widths>& levels, std::vector<nn::LevelRepair>& repairs) {
  const Split text(batches, std::max(kRows, kRowsPerWeight * decoder.spec().d_model));
  Progress progress("output norms", static_cast<int64_t>(levels.size()), "levels");
  const at::Tensor wanted = decoder.partition(hidden(decoder, text.fitted, {})).mean;
  const at::Tensor wanted_held_out = decoder.partition(hidden(decoder, text.held_out, {})).mean;
  for (size_t i = 0; i < levels.size(); ++i) {
    nn::ForwardOptions level;
    level.widths = &levels[i];
    level.repairs = &repairs[i];
    const Divergence fitted(decoder, hidden(decoder, text.fitted, level), wanted);
    const Divergence held_out(decoder, hidden(decoder, text.held_out, level), wanted_held_out);
    const at::Tensor weight = decoder.output_norm();
    const at::Tensor factors = best_factors(fitted, held_out, wanted.size(0)).to(weight.options());
    // The factors scale weight plus offset, but a file holds only the weight.
    const double offset = decoder.spec().output_norm_offset;
    repairs[i].output_norm = offset == 0 ? weight * factors : (weight + offset) * factors - offset;
    progress.advance(1);
  }
}

}  // namespace elastify::recover
