#pragma once

#include <list>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "model/permutation.h"
#include "model/profile.h"
#include "pipeline/text.h"
#include "plan/cost_curves.h"
#include "plan/make_plan.h"
#include "solve/rank_by_moments.h"

namespace elastify::pipeline {

/// Measures the cost of narrow widths on a model with its units in order.
class WidthMeter {
 public:
  /// \param batches  calibration token ids, int64 [B, T]
  WidthMeter(const nn::Decoder& decoder, std::vector<at::Tensor> batches);

  /// Cost curves for `dp`, nats per token. The shape of a space's curve is the error of its projection's
  /// output with refitted weights. Its scale comes from the losses measured with only that space narrowed, to
  /// half and to an eighth of its width.
  /// \param errors  of these orders, [spaces]
  plan::CostCurves curves(const std::vector<solve::PrefixErrors>& errors) const;
  /// KL(full || sub-model) of the next token's distribution, mean over tokens, nats. Layers below the first
  /// one whose widths differ from those of a recent call are not run again. This does not change a bit of the
  /// value.
  double divergence(const Widths& widths) const;

 private:
  /// Residual streams of a sub-model before every so many layers.
  struct Pass {
    Widths widths;
    std::vector<std::vector<at::Tensor>> streams;  ///< [layers / stride()][batches]
  };
  int64_t stride() const;
  /// Streams of a recent pass that a pass at these widths can reuse.
  std::vector<std::vector<at::Tensor>> known_streams(const Widths& widths) const;
  /// Hidden states after the output norm, by batch.
  std::vector<at::Tensor> hidden(const Widths& widths) const;
  /// log p of the full model for one sequence, float [T, V].
  at::Tensor full_prediction(size_t batch, int64_t sequence) const;

  const nn::Decoder& decoder_;
  std::vector<at::Tensor> batches_;
  mutable std::vector<at::Tensor> full_hidden_;                                ///< filled by divergence()
  mutable std::map<std::pair<size_t, int64_t>, at::Tensor> full_predictions_;  ///< if they fit in memory
  mutable std::list<Pass> passes_;                                             ///< last used first
};

/// Measurements that determine orders and widths.
struct Evidence {
  const Profile* profile = nullptr;
  MomentSource moments = nullptr;            ///< null: no second moments
  const Calibration* calibration = nullptr;  ///< text to measure on; null: none
};

struct MeasuredPlan {
  ElasticPlan plan;
  std::optional<plan::CostCurves> curves;  ///< if any were measured
};
/// Plans widths. Methods that measure losses get cost curves from second moments; without these, `dp` uses
/// the profile's scores. `dp+kl` also measures divergences. All losses are measured on `search_tokens` of the
/// calibration text.
/// \param order  of the units
/// \throws UsageError  if text or second moments that the method needs are missing, or if the model does not
///   fit into the memory limit
MeasuredPlan plan_widths(const OpenModel& model, const Evidence& evidence, const Permutation& order,
                         const plan::PlanOptions& options);

}  // namespace elastify::pipeline
