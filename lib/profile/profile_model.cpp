#include "profile/profile_model.h"

#include <torch/torch.h>

#include <algorithm>
#include <span>

#include "base/progress.h"
#include "nn/token_ids.h"
#include "nn/torch_error.h"

namespace elastify::profile {
namespace {

/// The sequences, `size` at a time; the last batch may be smaller.
std::vector<at::Tensor> make_id_batches(std::span<const std::vector<int32_t>> sequences, int64_t size) {
  std::vector<at::Tensor> batches;
  for (size_t first = 0; first < sequences.size(); first += static_cast<size_t>(size))
    batches.push_back(nn::stack_ids(
        sequences.subspan(first, std::min(static_cast<size_t>(size), sequences.size() - first))));
  return batches;
}

struct Taylor {
  std::vector<std::vector<float>> importance;
  double loss = 0;  ///< nats per predicted token
};

/// With masks m = 1 on the units' activations a, dL/dm of a sequence is sum_t a_t dL/da_t: minus the
/// first-order change of its loss when the unit is removed.
Taylor measure_taylor(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches) {
  const ModelSpec& spec = decoder.spec();
  std::vector<at::Tensor> totals;
  for (const auto& space : spec.spaces)
    totals.push_back(at::zeros({space.n_units}, at::TensorOptions().dtype(at::kDouble)));
  int64_t n_tokens = 0, n_predicted = 0;
  for (const auto& ids : batches) n_tokens += ids.numel();
  double loss = 0;
  Progress progress("taylor importance", n_tokens, "tokens");
  for (const auto& ids : batches) {
    std::vector<at::Tensor> masks;
    for (const auto& space : spec.spaces)
      masks.push_back(torch::ones({ids.size(0), space.n_units},
                                  at::TensorOptions().device(decoder.device()).requires_grad(true)));
    nn::ForwardOptions options;
    options.unit_masks = &masks;
    const at::Tensor nll = decoder.sequence_nll(ids, options).sum();
    const auto gradients = torch::autograd::grad({nll}, masks);
    for (size_t s = 0; s < masks.size(); ++s)
      totals[s] += gradients[s].to(at::kCPU, at::kDouble).abs().sum(0);
    loss += nll.item<double>();
    n_predicted += ids.size(0) * (ids.size(1) - 1);
    progress.advance(ids.numel());
  }
  Taylor result;
  result.loss = loss / static_cast<double>(n_predicted);
  for (const auto& total : totals) {
    const at::Tensor values = total.to(at::kFloat);
    result.importance.emplace_back(values.data_ptr<float>(), values.data_ptr<float>() + values.numel());
  }
  return result;
}

struct Removal {
  std::vector<double> rise;  ///< nats per predicted token, [n_layers]
  double loss = 0;           ///< of the whole model
};

/// What leaves layer l out shares all layers before l with the whole model, so these run once.
Removal measure_removal(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches) {
  const c10::NoGradGuard no_gradients;
  const int64_t n_layers = decoder.spec().n_layers;
  int64_t n_tokens = 0, n_predicted = 0;
  for (const auto& ids : batches) n_tokens += ids.numel();
  Removal result;
  result.rise.assign(static_cast<size_t>(n_layers), 0);
  Progress progress("layer removal", n_tokens * n_layers, "tokens");
  for (const auto& ids : batches) {
    const auto finish = [&](at::Tensor x, int64_t next_layer) {
      for (int64_t l = next_layer; l < n_layers; ++l) x = decoder.layer(l, x);
      return decoder.token_nll(decoder.final_norm(x), ids).sum(at::kDouble).item<double>();
    };
    at::Tensor x = decoder.embed(ids);
    for (int64_t l = 0; l < n_layers; ++l) {
      result.rise[static_cast<size_t>(l)] += finish(x, l + 1);
      x = decoder.layer(l, x);
      progress.advance(ids.numel());
    }
    result.loss += finish(x, n_layers);
    n_predicted += ids.size(0) * (ids.size(1) - 1);
  }
  result.loss /= static_cast<double>(n_predicted);
  for (double& rise : result.rise) rise = rise / static_cast<double>(n_predicted) - result.loss;
  return result;
}

}  // namespace

Profile profile_model(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                      const ProfileOptions& options) {
  if (spec_hash(decoder.spec()) != spec_hash(checkpoint.spec()))
    fail("decoder and checkpoint are different models");
  if (options.batch < 1)
    throw UsageError(fmt::format("profile.batch: expected 1 or more, got {}", options.batch));
  const auto wants = [&](Metric metric) {
    return std::find(options.metrics.begin(), options.metrics.end(), metric) != options.metrics.end();
  };
  const bool needs_data = wants(Metric::kTaylor) || options.removal_tokens > 0;
  if (needs_data && (batches.sequences.empty() || batches.seq_len < 2))
    fail("calibration data: expected sequences of 2 tokens or more, got {} of {}", batches.sequences.size(),
         batches.seq_len);
  Profile profile;
  profile.spec_hash = spec_hash(checkpoint.spec());
  profile.corpus_digest = batches.digest;
  profile.n_tokens = batches.n_tokens();
  profile.seq_len = batches.seq_len;
  profile.seed = options.seed;
  nn::with_torch_errors([&] {
    const std::span<const std::vector<int32_t>> sequences = batches.sequences;
    if (options.removal_tokens > 0) {
      const auto n = static_cast<size_t>(std::max<int64_t>(1, options.removal_tokens / batches.seq_len));
      Removal removal = measure_removal(
          decoder, make_id_batches(sequences.first(std::min(n, sequences.size())), options.batch));
      profile.removal_loss = std::move(removal.rise);
      profile.base_loss = removal.loss;
    }
    if (wants(Metric::kTaylor)) {
      Taylor taylor = measure_taylor(decoder, make_id_batches(sequences, options.batch));
      profile.importance[Metric::kTaylor] = std::move(taylor.importance);
      profile.base_loss = taylor.loss;
    }
  });
  for (const Metric metric : options.metrics)
    if (metric != Metric::kTaylor) add_data_free_metric(profile, checkpoint, metric, options.seed);
  return profile;
}

}  // namespace elastify::profile
