#pragma once

#include <list>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "model/permutation.h"
#include "pipeline/repairs.h"
#include "plan/cost_curves.h"
#include "plan/make_plan.h"
#include "solve/rank_by_moments.h"

namespace elastify::pipeline {

/// Measures what narrow widths cost, on a model with its units in order.
class WidthMeter {
 public:
  /// \param batches  calibration token ids, int64 [B, T]
  WidthMeter(const nn::Decoder& decoder, std::vector<at::Tensor> batches);

  /// Curves for `dp`, nats per token: the shape of a space's curve is the error of its projection's output
  /// with refitted weights, its scale is set by the losses measured with that space alone at half and at an
  /// eighth of its width.
  /// \param errors  of these orders, [spaces]
  plan::CostCurves curves(const std::vector<solve::PrefixErrors>& errors) const;
  /// KL(full || sub-model) of the next token's distribution, mean over tokens, nats. Layers below the first
  /// one whose widths differ from those of a recent call are not run again; the value is the same bits.
  double divergence(const Widths& widths) const;

 private:
  /// Residual streams of a sub-model before every so many layers.
  struct Pass {
    Widths widths;
    std::vector<std::vector<at::Tensor>> streams;  ///< [layers / stride()][batches]
  };
  int64_t stride() const;
  /// What the recent passes have of one at these widths.
  std::vector<std::vector<at::Tensor>> known_streams(const Widths& widths) const;
  /// Hidden states after the output norm, by batch.
  std::vector<at::Tensor> hidden(const Widths& widths) const;
  /// log p of the full model for one sequence, float [T, V].
  at::Tensor full_prediction(size_t batch, int64_t sequence) const;

  const nn::Decoder& decoder_;
  std::vector<at::Tensor> batches_;
  mutable std::vector<at::Tensor> full_hidden_;  ///< once a divergence was asked for
  mutable std::map<std::pair<size_t, int64_t>, at::Tensor> full_predictions_;  ///< where they fit in memory
  mutable std::list<Pass> passes_;                                             ///< the last used ones first
};

struct MeasuredPlan {
  ElasticPlan plan;
  std::optional<plan::CostCurves> curves;  ///< if any were measured
};
/// Plans widths, measuring what the method goes by: nothing for `uniform`, `anchors`, `zscore` and
/// `shortgpt`; curves for `dp`, if there are second moments (else it goes by the profile's scores);
/// divergences besides for `dp+kl`.
/// \param calibration  text to measure on, of which `removal_tokens` are taken; may be null where nothing is
///   measured
/// \throws UsageError  if text or second moments that the method needs are not there
MeasuredPlan plan_widths(const OpenModel& model, const Profile* profile, const MomentSource& moments,
                         const Permutation& order, const ReorderSection& options, int64_t seed,
                         const Calibration* calibration);

/// Whether planning by this method measures losses, so that it needs text and second moments.
bool measures_losses(plan::Method method);
/// Whether it goes by second moments, or by the influence of layers, which is measured along with them.
bool needs_moments(plan::Method method);

}  // namespace elastify::pipeline
