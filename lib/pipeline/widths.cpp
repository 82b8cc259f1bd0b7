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
/// Of a pass, evenly over the layers, and passes whose streams are kept: a search goes on from one of the
/// last few widths nearly always.
constexpr int64_t kKeptStreams = 8;
constexpr size_t kKeptPasses = 4;
/// Numbers of the full model's predictions that are kept, of four bytes each: 1 GiB.
constexpr int64_t kMostPredictions = int64_t{1} << 28;

/// A space alone at one width, and what that does to the loss.
struct Narrowed {
  size_t space;
  int64_t width;
  double rise = 0;  ///< nats per token
};

/// Half of every space, and an eighth: far down, losses rise faster than errors of the output. Of an
/// attention of one KV group, none, where it may go at all.
std::vector<Narrowed> widths_to_measure(const ModelSpec& spec) {
  std::vector<Narrowed> widths;
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    const int64_t n = spec.spaces[s].n_units, half = std::max<int64_t>(n / 2, 1);
    const int64_t eighth = std::max<int64_t>(n / 8, 1);
    if (half < n) widths.push_back({s, half});
    if (eighth < half) widths.push_back({s, eighth});
    if (n == 1 && spec.spaces[s].layer > 0) widths.push_back({s, 0});
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
  if (factors.empty()) return cost;  // one unit that has to stay: there is nothing to choose
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

bool needs_moments(plan::Method method) {
  return measures_losses(method) || method == plan::Method::kShortGpt;
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

int64_t WidthMeter::stride() const {
  return (decoder_.spec().n_layers + kKeptStreams - 1) / kKeptStreams;
}

std::vector<std::vector<at::Tensor>> WidthMeter::known_streams(const Widths& widths) const {
  const std::vector<AxisSpace>& spaces = decoder_.spec().spaces;
  auto nearest = passes_.end();
  int64_t most = 0;  // layers
  for (auto pass = passes_.begin(); pass != passes_.end(); ++pass) {
    int64_t alike = decoder_.spec().n_layers;
    for (size_t s = 0; s < spaces.size(); ++s)
      if (pass->widths[s] != widths[s]) alike = std::min(alike, spaces[s].layer);
    if (nearest == passes_.end() || alike > most) nearest = pass, most = alike;
  }
  if (nearest == passes_.end()) return {};
  passes_.splice(passes_.begin(), passes_, nearest);
  auto streams = nearest->streams;
  streams.resize(std::min(streams.size(), static_cast<size_t>(most / stride()) + 1));
  return streams;
}

std::vector<at::Tensor> WidthMeter::hidden(const Widths& widths) const {
  nn::ForwardOptions options;
  options.widths = &widths;
  Pass pass{widths, known_streams(widths)};
  if (pass.streams.empty()) {
    pass.streams.emplace_back();
    for (const at::Tensor& ids : batches_) pass.streams.back().push_back(decoder_.embed(ids));
  }
  auto n_known = static_cast<int64_t>(pass.streams.size());
  std::vector<at::Tensor> streams = pass.streams.back();
  for (int64_t l = (n_known - 1) * stride(); l < decoder_.spec().n_layers; ++l) {
    if (l == n_known * stride()) {
      pass.streams.push_back(streams);
      ++n_known;
    }
    for (at::Tensor& stream : streams) stream = decoder_.layer(l, stream, options);
  }
  for (at::Tensor& stream : streams) stream = decoder_.final_norm(stream, options);
  passes_.push_front(std::move(pass));
  if (passes_.size() > kKeptPasses) passes_.pop_back();
  return streams;
}

at::Tensor WidthMeter::full_prediction(size_t batch, int64_t sequence) const {
  int64_t n_tokens = 0;
  for (const at::Tensor& ids : batches_) n_tokens += ids.numel();
  const auto predict = [&] {
    return at::log_softmax(decoder_.logits(full_hidden_[batch][sequence]).to(at::kFloat), 1);
  };
  if (n_tokens * decoder_.spec().n_vocab > kMostPredictions) return predict();
  at::Tensor& kept = full_predictions_[{batch, sequence}];
  if (!kept.defined()) kept = predict();
  return kept;
}

double WidthMeter::divergence(const Widths& widths) const {
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    if (full_hidden_.empty()) full_hidden_ = hidden(full_widths(decoder_.spec()));
    const std::vector<at::Tensor> narrow = hidden(widths);
    double sum = 0, n = 0;
    for (size_t i = 0; i < batches_.size(); ++i)
      for (int64_t b = 0; b < batches_[i].size(0); ++b) {  // the logits of one sequence at a time
        const at::Tensor p = full_prediction(i, b);
        const at::Tensor q = at::log_softmax(decoder_.logits(narrow[i][b]).to(at::kFloat), 1);
        sum += (p.exp() * (p - q)).sum(at::kDouble).item<double>();
        n += static_cast<double>(batches_[i].size(1));
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
  if (planning.method == plan::Method::kDp && !moments && calibration != nullptr &&
      !calibration->text.data.empty())
    log::warn("plan `dp` goes by scores: the profile has no second moments to measure losses with");
  if (!measures_losses(planning.method) || (!moments && !searches))
    return {plan::make_plan(spec, profile, planning), std::nullopt};
  const std::string method(plan::name_of(planning.method));
  if (!moments || profile == nullptr)
    throw UsageError(fmt::format("plan `{}` goes by second moments, and there are none", method),
                     "run `elastify profile` with --second-moments");
  if (calibration == nullptr || calibration->text.data.empty())
    throw UsageError(fmt::format("plan `{}` measures losses on text, and there is none", method),
                     "--data FILE... (or self), beside --profile too");
  const auto errors = solve::prefix_errors(model.checkpoint, moments, profile->n_tokens, order, kMomentRidge,
                                           calibration->compute.device);
  const nn::Decoder decoder(arranged(model.checkpoint, order), calibration->compute);
  profile::ProfileOptions text = calibration->text;
  text.tokens = text.removal_tokens > 0 ? text.removal_tokens : 1024;
  if (planning.search_seq > 0) {
    text.batch = std::max<int64_t>(text.batch * text.seq / planning.search_seq, 1);
    text.seq = planning.search_seq;
  }
  text.tokens = std::max(text.tokens, text.seq);
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
