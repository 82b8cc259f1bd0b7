#include "pipeline/widths.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "nn/torch_error.h"
#include "pipeline/order.h"

namespace elastify::pipeline {
namespace {

/// Least rise of the loss, nats per token. A smaller measured rise is noise, and no space is free.
constexpr double kLeastRise = 1e-4;
/// Streams that are kept of a pass, evenly over the layers, and number of passes that are kept. A search
/// nearly always continues from one of the last few widths.
constexpr int64_t kKeptStreams = 8;
constexpr size_t kKeptPasses = 4;
/// Most numbers of the full model's predictions to keep, of four bytes each: 1 GiB.
constexpr int64_t kMostPredictions = int64_t{1} << 28;

/// The rise of the loss with only one space narrowed, to one width.
struct Narrowed {
  size_t space;
  int64_t width;
  double rise = 0;  ///< nats per token
};

/// Half and an eighth of every space. An eighth is needed as well, because losses rise faster than output
/// errors at small widths. Attention of one KV group has only width 0 to measure, and in the first layer not
/// even that.
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

/// Converts errors to nats. At a measured width, the factor is the measured rise over the unfitted error.
/// Between two measured widths the factor is interpolated linearly; outside it is constant.
/// \param measured  widths of this space, falling
std::vector<double> scaled(const solve::PrefixErrors& errors, const std::vector<Narrowed>& measured) {
  std::vector<double> cost = errors.fitted;
  std::vector<std::pair<int64_t, double>> factors;
  for (const Narrowed& one : measured)
    if (const double unfitted = errors.unfitted.at(static_cast<size_t>(one.width)); unfitted > 0)
      factors.emplace_back(one.width, std::max(one.rise, kLeastRise) / unfitted);
  if (factors.empty()) return cost;  // a single unit that has to stay
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
      std::vector<at::Tensor> streams;  // of the narrowed models that have begun
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
      for (int64_t b = 0; b < batches_[i].size(0); ++b) {  // one sequence at a time bounds memory
        const at::Tensor p = full_prediction(i, b);
        const at::Tensor q = at::log_softmax(decoder_.logits(narrow[i][b]).to(at::kFloat), 1);
        sum += (p.exp() * (p - q)).sum(at::kDouble).item<double>();
        n += static_cast<double>(batches_[i].size(1));
      }
    return sum / n;
  });
}

namespace {

/// The part of the calibration text that losses are measured on.
TextOptions search_text(TextOptions text, const plan::PlanOptions& options) {
  if (options.search_seq > 0) {
    text.batch = std::max<int64_t>(text.batch * text.seq / options.search_seq, 1);
    text.seq = options.search_seq;
  }
  text.tokens = std::max(options.search_tokens, text.seq);
  return text;
}

bool has_text(const Evidence& evidence) {
  return evidence.calibration != nullptr && !evidence.calibration->text.data.empty();
}

/// \throws UsageError
void require_evidence(const Evidence& evidence, plan::Method method) {
  if (!evidence.moments || evidence.profile == nullptr)
    throw UsageError(
        fmt::format("plan `{}` goes by second moments, and there are none", plan::name_of(method)),
        "run `elastify profile` with --second-moments");
  if (!has_text(evidence))
    throw UsageError(
        fmt::format("plan `{}` measures losses on text, and there is none", plan::name_of(method)),
        "--data FILE... (or self), beside --profile too");
}

}  // namespace

MeasuredPlan plan_widths(const OpenModel& model, const Evidence& evidence, const Permutation& order,
                         const plan::PlanOptions& options) {
  const ModelSpec& spec = model.checkpoint.spec();
  const bool searches = options.method == plan::Method::kDpKl;
  if (!plan::facts_of(options.method).measures_losses || (!evidence.moments && !searches)) {
    if (options.method == plan::Method::kDp && has_text(evidence))
      log::warn("plan `dp` goes by scores: the profile has no second moments to measure losses with");
    return {plan::make_plan(spec, evidence.profile, options), std::nullopt};
  }
  require_evidence(evidence, options.method);
  const Calibration& calibration = *evidence.calibration;
  const TextOptions text = search_text(calibration.text, options);
  require_resident(spec, text, calibration.max_ram, fmt::format("plan `{}`", plan::name_of(options.method)));
  const auto errors = solve::prefix_errors(model.checkpoint, evidence.moments, evidence.profile->n_tokens,
                                           order, kMomentRidge, calibration.compute.device);
  const nn::Decoder decoder(arranged(model.checkpoint, order), calibration.compute);
  const WidthMeter meter(decoder, calibration_batches(model, decoder, text));
  plan::CostCurves curves = meter.curves(errors);
  plan::MeasureLoss measure;
  // Starting points and moves of the search. Widths that were measured before are not measured again.
  Progress progress("widths measured", static_cast<int64_t>(6 * options.levels.size()) + options.search_steps,
                    "plans");
  if (searches)
    measure = [&](const Widths& widths) {
      progress.advance(1);
      return meter.divergence(widths);
    };
  ElasticPlan plan = plan::make_plan(spec, evidence.profile, options, &curves, measure);
  return {std::move(plan), std::move(curves)};
}

}  // namespace elastify::pipeline
