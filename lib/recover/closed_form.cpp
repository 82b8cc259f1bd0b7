#include "recover/closed_form.h"

#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "nn/torch_error.h"
#include "recover/adapter_ranks.h"
#include "recover/output_norm.h"
#include "recover/regression.h"
#include "recover/stream_metric.h"

namespace elastify::recover {
namespace {

/// Rows of y minus the projection's bias, which the forward pass adds.
at::Tensor without(const at::Tensor& y, const at::Tensor& bias) {
  return bias.defined() ? rows_of(y) - bias : rows_of(y);
}

/// Fits one layer of one level.
class LevelFit {
 public:
  /// The repairs and counts of one level.
  struct Output {
    nn::LevelRepair& repairs;
    Verdict& verdict;
  };
  LevelFit(const nn::Decoder& decoder, int64_t layer, const Widths& widths, const Output& output,
           const ClosedFormOptions& options, at::Tensor metric)
      : decoder_(decoder),
        layer_(layer),
        widths_(widths),
        repairs_(output.repairs),
        verdict_(output.verdict),
        options_(options),
        metric_(std::move(metric)) {}

  /// Fits o or down and moves the level's stream past that half of the layer.
  /// \param rank  of an adapter; 0: none
  /// \param before, after  the full model's stream before and after that half, by batch
  /// \param stream  the level's stream, by batch
  void fit(Site site, int64_t rank, const std::vector<at::Tensor>& before,
           const std::vector<at::Tensor>& after, std::vector<at::Tensor>& stream) const {
    const at::Tensor weight = decoder_.projection(layer_, site, widths_);
    if (weight.size(1) == 0) return;  // that half is left out: no inputs to fit on
    nn::ForwardOptions level, inputs;
    level.widths = inputs.widths = &widths_;
    level.repairs = &repairs_;
    inputs.half = site == Site::kAttnOut ? nn::Half::kAttention : nn::Half::kMlp;
    inputs.projects = false;
    const at::Tensor bias = decoder_.projection_bias(layer_, site);
    std::optional<Sample> sample;
    if (rank > 0 || has(options_.compensation, Compensation::kBakedBias))
      sample.emplace(weight.size(1), weight.size(0), stream.size(), options_);
    std::vector<at::Tensor> kept;
    for (size_t b = 0; b < stream.size(); ++b) {
      const nn::LayerTrace trace = decoder_.trace(layer_, stream[b], inputs);
      kept.push_back(decoder_.site_input(layer_, site, trace));
      if (!sample) continue;
      // The target is the full model's contribution to its stream. With whole_stream, it also corrects the
      // error that the level's stream already has.
      const at::Tensor& base = *options_.whole_stream ? stream[b] : before[b];
      sample->add(b, rows_of(kept.back()), without(after[b] - base, bias), token_weights(after[b], options_));
    }
    if (sample) {
      Sample::Result result = sample->repair(weight, options_, rank, metric_);
      ++verdict_.n_matrices;
      verdict_.n_shrunk += result.share < 1 && result.share > 0;
      verdict_.n_dropped += result.share == 0;
      repairs_.layers[static_cast<size_t>(layer_)][nn::projection_role(site)] = std::move(result.repair);
    }
    for (size_t b = 0; b < stream.size(); ++b)
      stream[b] = decoder_.add_projection(layer_, site, stream[b], std::exchange(kept[b], {}), level);
  }

 private:
  const nn::Decoder& decoder_;
  int64_t layer_;
  const Widths& widths_;
  nn::LevelRepair& repairs_;
  Verdict& verdict_;
  const ClosedFormOptions& options_;
  at::Tensor metric_;  ///< of errors after the layer; undefined: Euclidean
};

/// Metrics and ranks for fitting adapters.
struct Adapters {
  std::vector<at::Tensor> metrics;             ///< [n_layers], see stream_metrics()
  std::vector<std::vector<LayerRanks>> ranks;  ///< [levels][n_layers]

  Adapters(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
           const std::vector<Widths>& levels, const ClosedFormOptions& options)
      : metrics(static_cast<size_t>(decoder.spec().n_layers)),
        ranks(levels.size(), std::vector<LayerRanks>(metrics.size(), {options.rank, options.rank})) {
    if (!has(options.compensation, Compensation::kAdapter) || !options.spread_ranks) return;
    metrics = stream_metrics(decoder, batches, options);
    ranks = spread_ranks(decoder, batches, levels, metrics, options);
  }
};

/// Fits o and down of all layers of all levels.
/// \param repairs  of each level; receives the repairs of the layers
/// \param verdicts  of each level; receives the counts of matrices
void fit_projections(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                     const std::vector<Widths>& levels, const ClosedFormOptions& options,
                     std::vector<nn::LevelRepair>& repairs, std::vector<Verdict>& verdicts) {
  const int64_t n_layers = decoder.spec().n_layers;
  const Adapters adapters(decoder, batches, levels, options);
  int64_t n_tokens = 0;
  for (const at::Tensor& ids : batches) n_tokens += ids.numel();
  Progress progress("compensation", n_tokens * n_layers * static_cast<int64_t>(levels.size()),
                    "layer-tokens");
  std::vector<at::Tensor> full;  // residual streams by batch
  for (const at::Tensor& ids : batches) full.push_back(decoder.embed(ids));
  std::vector<std::vector<at::Tensor>> narrow(levels.size(), full);
  for (int64_t l = 0; l < n_layers; ++l) {
    const auto layer = static_cast<size_t>(l);
    std::vector<at::Tensor> middles, outputs;
    for (const at::Tensor& stream : full) {
      const nn::LayerTrace trace = decoder.trace(l, stream);
      middles.push_back(trace.middle);
      outputs.push_back(trace.output);
    }
    for (size_t i = 0; i < levels.size(); ++i) {
      with_context(fmt::format("layers.{}", l), [&] {
        const LevelFit level(decoder, l, levels[i], {repairs[i], verdicts[i]}, options,
                             adapters.metrics[layer]);
        const LayerRanks& ranks = adapters.ranks[i][layer];
        level.fit(Site::kAttnOut, ranks.attention_out, full, middles, narrow[i]);
        level.fit(Site::kFfnDown, ranks.down, middles, outputs, narrow[i]);
      });
      if (!*options.sequential) narrow[i] = outputs;
      progress.advance(n_tokens);
    }
    full = std::move(outputs);
  }
}

/// A projection is fitted to the contribution of its half to the stream. With a norm after the projection,
/// this is not a linear function of its inputs.
void require_no_norm_behind(const ModelSpec& spec) {
  for (const TensorSpec& tensor : spec.tensors)
    if (tensor.role == Role::kAttnPostNorm || tensor.role == Role::kFfnPostNorm)
      throw Error(fmt::format("{}: closed-form repairs of o and down are not supported where a norm follows",
                              tensor.name),
                  "compensation `norm` fits the output norm alone");
}

/// With fewer tokens per input than this, a projection overfits the text it is fitted on (docs/quality.md).
constexpr int64_t kTokensPerInput = 32;

void warn_if_text_is_short(const std::vector<at::Tensor>& batches, int64_t n_inputs) {
  int64_t n_tokens = 0;
  for (const at::Tensor& ids : batches) n_tokens += ids.numel();
  if (n_tokens < kTokensPerInput * n_inputs)
    log::warn(
        "repairs are fitted on {} tokens, {} for each of the {} inputs of the widest projection, and may not "
        "hold on other text; more: --fit-tokens (`reorder.fit_tokens`), if there is as much text",
        n_tokens, n_tokens / n_inputs, n_inputs);
}

}  // namespace

std::vector<nn::LevelRepair> fit_levels(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                        const std::vector<Widths>& levels, const ClosedFormOptions& given,
                                        const HeldOutText& held_out, std::vector<Verdict>* verdicts) {
  const ClosedFormOptions options = resolved(given);
  std::vector<nn::LevelRepair> repairs(levels.size());
  for (nn::LevelRepair& level : repairs) level.layers.resize(static_cast<size_t>(decoder.spec().n_layers));
  if (options.compensation == Compensation::kNone || levels.empty()) return repairs;
  if (batches.empty()) fail("closed-form compensation needs calibration data");
  if (options.compensation != Compensation::kNorm && decoder.dtype() != at::kFloat)
    log::warn(
        "repairs are fitted to a residual stream in {}, which rounds what each layer adds; f32 is more exact",
        c10::toString(decoder.dtype()));
  const bool fits_many =
      has(options.compensation, Compensation::kAdapter) || has(options.compensation, Compensation::kBaked);
  if (fits_many && !options.guard)  // the guard drops what does not hold on other text
    warn_if_text_is_short(batches, decoder.spec().d_ff());
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    if (options.compensation != Compensation::kNorm) require_no_norm_behind(decoder.spec());
    std::vector<Verdict> judged(levels.size());
    if (options.compensation != Compensation::kNorm)
      fit_projections(decoder, batches, levels, options, repairs, judged);
    if (has(options.compensation, Compensation::kNorm)) fit_output_norms(decoder, batches, levels, repairs);
    if (options.guard) guard_levels(decoder, held_out, batches, levels, repairs, judged);
    if (verdicts != nullptr) *verdicts = std::move(judged);
    return repairs;
  });
}

nn::LevelRepair fit_level(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                          const Widths& widths, const ClosedFormOptions& options) {
  return std::move(fit_levels(decoder, batches, {widths}, options).front());
}

}  // namespace elastify::recover
