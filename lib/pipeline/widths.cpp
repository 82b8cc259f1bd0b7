#include "pipeline/widths.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "nn/torch_error.h"

namespace elastify::pipeline {
namespace {

/// Where a measured rise of the loss is not above noise, a space still is not free.
constexpr double kLeastRise = 1e-4;

/// A space alone at one width, and what that does to the loss.
struct Narrowed {
  size_t space;
  int64_t width;
  double rise = 0;  ///< nats per token
};

/// Half of every space, and an eighth: far down, losses rise faster than errors of the output.
std::vector<Narrowed> widths_to_measure(const ModelSpec& spec) {
  std::vector<Narrowed> widths;
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    const int64_t n = spec.spaces[s].n_units, half = std::max<int64_t>(n / 2, 1);
    const int64_t eighth = std::max<int64_t>(n / 8, 1);
    if (half < n) widths.push_back({s, half});
    if (eighth < half) widths.push_back({s, eighth});
  }
  return widths;
}

/// The errors in nats: at each measured width times what makes the unfitted error the measured rise, between
/// two of them times what lies between, in proportion.
/// \param measured  of this space, falling widths
std::vector<double> scaled(const solve::PrefixErrors& errors, const std::vector<Narrowed>& measured) {
  std::vector<double> cost = errors.fitted;
  std::vector<std::pair<int64_t, double>> factors;
  for (const Narrowed& one : measured)
    if (const double unfitted = errors.unfitted.at(static_cast<size_t>(one.width)); unfitted > 0)
      factors.emplace_back(one.width, std::max(one.rise, kLeastRise) / unfitted);
  if (factors.empty()) return cost;  // a space of one unit: its error is all there is to go by
  for (size_t k = 0; k < cost.size(); ++k) {
    const auto width = static_cast<int64_t>(k);
    const auto& [wide, at_wide] = factors.front();
    const auto& [thin, at_thin] = factors.back();
    const double share = wide > thin ? static_cast<double>(std::clamp(width, thin, wide) - thin) /
                                           static_cast<double>(wide - thin)
                                     : 1;
    cost[k] *= share * at_wide + (1 - share) * at_thin;
  }
  return cost;
}

}  // namespace

bool measures_losses(plan::Method method) {
  return method == plan::Method::kDp || method == plan::Method::kDpKl;
}

WidthMeter::WidthMeter(const nn::Decoder& decoder, std::vector<at::Tensor> batches)
    : decoder_(decoder), batches_(std::move(batches)) {
  if (batches_.empty()) fail("widths are measured on text, and there is none");
}

plan::CostCurves WidthMeter::curves(const std::vector<solve::PrefixErrors>& errors) const {
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    const ModelSpec& spec = decoder_.spec();
    std::vector<Narrowed> measured = widths_to_measure(spec);
    int64_t n_tokens = 0, n_predicted = 0;
    for (const at::Tensor& ids : batches_) {
      n_tokens += ids.numel();
      n_predicted += ids.numel() - ids.size(0);
    }
    const auto nll = [&](const at::Tensor& x, const at::Tensor& ids) {
      return decoder_.token_nll(decoder_.final_norm(x), ids).sum(at::kDouble).item<double>();
    };
    Progress progress("loss of single narrow spaces", n_tokens * spec.n_layers, "layer-tokens");
    for (const at::Tensor& ids : batches_) {
      std::vector<at::Tensor> streams;  // of those narrowed so far
      at::Tensor whole = decoder_.embed(ids);
      for (int64_t l = 0; l < spec.n_layers; ++l) {
        for (at::Tensor& stream : streams) stream = decoder_.layer(l, stream);
        for (; streams.size() < measured.size();) {
          const Narrowed& next = measured[streams.size()];
          if (spec.spaces[next.space].layer != l) break;
          Widths widths = full_widths(spec);
          widths[next.space] = next.width;
          nn::ForwardOptions options;
          options.widths = &widths;
          streams.push_back(decoder_.layer(l, whole, options));
        }
        whole = decoder_.layer(l, whole);
        progress.advance(ids.numel());
      }
      const double base = nll(whole, ids);
      for (size_t i = 0; i < streams.size(); ++i)
        measured[i].rise += (nll(streams[i], ids) - base) / static_cast<double>(n_predicted);
    }
    plan::CostCurves curves;
    curves.source = fmt::format(
        "errors of refitted outputs, scaled by the loss at an eighth and at half of the width on {} tokens",
        n_tokens);
    for (size_t s = 0; s < errors.size(); ++s) {
      std::vector<Narrowed> of_space;
      std::copy_if(measured.begin(), measured.end(), std::back_inserter(of_space),
                   [&](const Narrowed& one) { return one.space == s; });
      curves.cost.push_back(scaled(errors[s], of_space));
    }
    return curves;
  });
}

double WidthMeter::divergence(const Widths& widths) const {
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    nn::ForwardOptions options;
    options.widths = &widths;
    double sum = 0, n = 0;
    for (size_t i = 0; i < batches_.size(); ++i) {
      const at::Tensor& ids = batches_[i];
      if (hidden_.size() == i) hidden_.push_back(decoder_.hidden(ids));
      const at::Tensor &full = hidden_[i], narrow = decoder_.hidden(ids, options);
      for (int64_t b = 0; b < ids.size(0); ++b) {  // the logits of one sequence at a time
        const at::Tensor p = at::log_softmax(decoder_.logits(full[b]).to(at::kFloat), 1);
        const at::Tensor q = at::log_softmax(decoder_.logits(narrow[b]).to(at::kFloat), 1);
        sum += (p.exp() * (p - q)).sum(at::kDouble).item<double>();
        n += static_cast<double>(ids.size(1));
      }
    }
    return sum / n;
  });
}

MeasuredPlan plan_widths(const OpenModel& model, const Profile* profile, const MomentSource& moments,
                         const Permutation& order, const ReorderSection& options, int64_t seed,
                         const Calibration* calibration) {
  const ModelSpec& spec = model.checkpoint.spec();
  plan::PlanOptions planning = options.plan;
  planning.metric = options.metric;
  const bool searches = planning.method == plan::Method::kDpKl;
  if (!measures_losses(planning.method) || (!moments && !searches))
    return {plan::make_plan(spec, profile, planning), std::nullopt};
  const std::string method(plan::name_of(planning.method));
  if (!moments || profile == nullptr)
    throw UsageError(fmt::format("plan `{}` goes by second moments, and there are none", method),
                     "run `elastify profile` with --second-moments");
  if (calibration == nullptr || calibration->text.data.empty())
    throw UsageError(fmt::format("plan `{}` measures losses on text, and there is none", method),
                     "--data FILE... (or self), beside --profile too");
  const auto errors = solve::prefix_errors(model.checkpoint, moments, profile->n_tokens, order, kMomentRidge);
  const nn::Decoder decoder(arranged(model.checkpoint, order), calibration->compute);
  profile::ProfileOptions text = calibration->text;
  text.tokens = text.removal_tokens > 0 ? text.removal_tokens : 1024;
  const WidthMeter meter(decoder, calibration_batches(model, decoder, text, seed));
  plan::CostCurves curves = meter.curves(errors);
  plan::MeasureLoss measure;
  // Starts and moves; those that were measured before cost nothing.
  Progress progress("widths measured",
                    static_cast<int64_t>(6 * planning.levels.size()) + planning.search_steps, "plans");
  if (searches)
    measure = [&](const Widths& widths) {
      progress.advance(1);
      return meter.divergence(widths);
    };
  ElasticPlan plan = plan::make_plan(spec, profile, planning, &curves, measure);
  return {std::move(plan), std::move(curves)};
}

}  // namespace elastify::pipeline
