#include "recover/adapter_ranks.h"

#include <torch/torch.h>

#include <algorithm>
#include <map>

#include "base/progress.h"
#include "recover/regression.h"

namespace elastify::recover {
namespace {

/// One further rank of one matrix.
struct Rank {
  double gain;
  int64_t n_params;
  int64_t* ranks;  ///< rank of the matrix, increased when this one is taken
};

/// The ranks that a level can take, and its budget.
struct Offer {
  std::vector<Rank> ranks;
  int64_t budget = 0;  ///< parameters

  /// Adds the ranks of a matrix, and the parameters of `rank` ranks to the budget.
  /// \param gains  of the matrix's ranks, falling
  void add(const at::Tensor& gains, int64_t n_params, int64_t rank, int64_t& ranks_of_matrix) {
    const auto gain = gains.accessor<double, 1>();
    budget += n_params * std::min(rank, gain.size(0));
    for (int64_t r = 0; r < gain.size(0); ++r) ranks.push_back({gain[r], n_params, &ranks_of_matrix});
  }

  /// Takes ranks by gain per parameter until one does not fit.
  void take() {
    std::stable_sort(ranks.begin(), ranks.end(), [](const Rank& left, const Rank& right) {
      return left.gain * static_cast<double>(right.n_params) >
             right.gain * static_cast<double>(left.n_params);
    });
    for (const Rank& rank : ranks) {
      if (rank.n_params > budget) break;
      budget -= rank.n_params;
      ++*rank.ranks;
    }
  }
};

}  // namespace

std::vector<std::vector<LayerRanks>> spread_ranks(const nn::Decoder& decoder,
                                                  const std::vector<at::Tensor>& batches,
                                                  const std::vector<Widths>& levels,
                                                  const std::vector<at::Tensor>& metrics,
                                                  const ClosedFormOptions& options) {
  const int64_t n_layers = decoder.spec().n_layers;
  int64_t n_tokens = 0;
  for (const at::Tensor& ids : batches) n_tokens += ids.numel();
  std::vector<std::vector<LayerRanks>> ranks(levels.size(),
                                             std::vector<LayerRanks>(static_cast<size_t>(n_layers)));
  std::vector<Offer> offers(levels.size());
  const Widths all = full_widths(decoder.spec());
  Progress progress("ranks of adapters", n_tokens * n_layers, "layer-tokens");
  std::vector<at::Tensor> streams;
  for (const at::Tensor& ids : batches) streams.push_back(decoder.embed(ids));
  for (int64_t l = 0; l < n_layers; ++l) {
    const auto layer = static_cast<size_t>(l);
    // A level's inputs are leading inputs of the full model, so one sum serves all levels.
    std::map<Site, Sample> samples;
    for (size_t b = 0; b < streams.size(); ++b) {
      const nn::LayerTrace trace = decoder.trace(l, streams[b]);
      for (const Site site : {Site::kAttnOut, Site::kFfnDown}) {
        const at::Tensor weight = decoder.projection(l, site, all);
        if (weight.size(1) == 0) continue;  // a half that the model itself leaves out
        const at::Tensor inputs = rows_of(decoder.site_input(l, site, trace));
        const at::Tensor& after = site == Site::kAttnOut ? trace.middle : trace.output;
        samples.try_emplace(site, weight.size(1), weight.size(0), streams.size(), options)
            .first->second.add(b, inputs, at::mm(inputs, weight.t()), token_weights(after, options));
      }
      streams[b] = trace.output;
    }
    for (size_t i = 0; i < levels.size(); ++i)
      for (const auto& [site, sample] : samples) {
        const at::Tensor kept = decoder.projection(l, site, levels[i]);
        if (kept.size(1) == 0) continue;
        LayerRanks& of_layer = ranks[i][layer];
        offers[i].add(sample.gains(kept, options, metrics[layer]), kept.size(0) + kept.size(1), options.rank,
                      site == Site::kAttnOut ? of_layer.attention_out : of_layer.down);
      }
    progress.advance(n_tokens);
  }
  for (Offer& offer : offers) offer.take();
  return ranks;
}

}  // namespace elastify::recover
