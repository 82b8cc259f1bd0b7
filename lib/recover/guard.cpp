#include "recover/guard.h"

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/progress.h"
#include "recover/output_norm.h"

namespace elastify::recover {
namespace {

/// Shares of a repair that are tried after the whole repair.
constexpr std::array<double, 3> kSmallerShares{0.75, 0.5, 0.25};
/// The mean divergence has to fall by more than this many standard errors.
constexpr double kMargin = 2;
/// Share of the divergence by which repairs of layers have to lower it if all text is of one source. On other
/// kinds of text their gain is smaller by about that much (docs/quality.md), which held-out text of the same
/// source does not show. An output norm has only D numbers, and its gain carries over.
constexpr double kLeastGain = 0.15;

/// Divergence of a level from the full model on held-out text.
class Judge {
 public:
  Judge(const nn::Decoder& decoder, const HeldOutText& text) : decoder_(decoder) {
    for (size_t s = 0; s < text.sources.size(); ++s)
      for (const at::Tensor& ids : text.sources[s]) {
        batches_.push_back(ids);
        for (int64_t i = 0; i < ids.size(0); ++i) source_.push_back(s);
      }
    n_sources_ = text.sources.size();
    n_tokens_ = batches_.front().size(1);
    const at::Tensor states = hidden({});
    const nn::Decoder::Partition full = decoder_.partition(states);
    wanted_ = full.mean;
    entropy_ = full.log_sum.to(at::kDouble) - agreed(states);
  }

  /// Kullback-Leibler divergence of a level, mean over the tokens of each sequence, float64 [sequences].
  at::Tensor divergence(const Widths& widths, const nn::LevelRepair* repairs) const {
    nn::ForwardOptions options;
    options.widths = &widths;
    options.repairs = repairs;
    const at::Tensor states = hidden(options);
    const at::Tensor crossed = decoder_.partition(states).log_sum.to(at::kDouble) - agreed(states);
    return (crossed - entropy_).view({-1, n_tokens_}).mean(1).to(at::kCPU);
  }

  struct Change {
    double mean = 0;     ///< over sources
    double error = 0;    ///< standard error of the mean
    bool harms = false;  ///< whether the mean of some source rises
    bool helps() const { return mean < -kMargin * error && !harms; }
  };
  /// The change from one divergence to another.
  Change change(const at::Tensor& from, const at::Tensor& to) const {
    const at::Tensor difference = to - from;
    Change change;
    double variance = 0;
    for (size_t s = 0; s < n_sources_; ++s) {
      std::vector<int64_t> which;
      for (size_t i = 0; i < source_.size(); ++i)
        if (source_[i] == s) which.push_back(static_cast<int64_t>(i));
      if (which.empty()) continue;
      const at::Tensor part = difference.index_select(0, at::tensor(which, at::kLong));
      const double mean = part.mean().item<double>();
      change.mean += mean;
      change.harms |= !(mean <= 0);
      // One sequence gives no estimate of the variance, so its change counts as its own error.
      variance +=
          which.size() > 1 ? part.var().item<double>() / static_cast<double>(which.size()) : mean * mean;
    }
    change.mean /= static_cast<double>(n_sources_);
    change.error = std::sqrt(variance) / static_cast<double>(n_sources_);
    return change;
  }
  size_t n_sources() const { return n_sources_; }
  double mean(const at::Tensor& divergence) const {
    return change(at::zeros_like(divergence), divergence).mean;
  }

 private:
  /// Hidden states of all tokens after the output norm, [tokens, D].
  at::Tensor hidden(const nn::ForwardOptions& options) const {
    std::vector<at::Tensor> streams;
    for (const at::Tensor& ids : batches_) streams.push_back(decoder_.embed(ids));
    for (int64_t l = 0; l < decoder_.spec().n_layers; ++l)
      for (at::Tensor& stream : streams) stream = decoder_.layer(l, stream, options);
    for (at::Tensor& stream : streams)
      stream = decoder_.final_norm(stream, options).reshape({-1, decoder_.spec().d_model});
    return at::cat(streams);
  }
  /// Mean logit under the full model's predicted distribution, by token.
  at::Tensor agreed(const at::Tensor& states) const {
    return (states.to(at::kFloat) * wanted_.to(at::kFloat)).sum(1, false, at::kDouble);
  }

  const nn::Decoder& decoder_;
  std::vector<at::Tensor> batches_;
  std::vector<size_t> source_;  ///< of each sequence
  size_t n_sources_ = 0;
  int64_t n_tokens_ = 0;  ///< of a sequence
  at::Tensor wanted_, entropy_;
};

/// The level's repairs, scaled towards the unrepaired weights.
/// \param share  1: the whole repair; 0: none
nn::LevelRepair part_of(const nn::Decoder& decoder, const Widths& widths, const nn::LevelRepair& whole,
                        double share) {
  nn::LevelRepair part = whole;
  for (size_t l = 0; l < part.layers.size(); ++l)
    for (const Site site : {Site::kAttnOut, Site::kFfnDown}) {
      const auto found = part.layers[l].find(nn::projection_role(site));
      if (found == part.layers[l].end()) continue;
      nn::TensorRepair& repair = found->second;
      if (repair.weight.defined())
        repair.weight =
            at::lerp(decoder.projection(static_cast<int64_t>(l), site, widths), repair.weight, share);
      if (repair.b.defined()) repair.b = repair.b * share;
      if (repair.bias.defined()) repair.bias = repair.bias * share;
    }
  if (part.output_norm.defined()) part.output_norm = at::lerp(decoder.output_norm(), part.output_norm, share);
  return part;
}

/// The best repair of a level so far.
struct Choice {
  double share = 0;  ///< of the repairs in the layers
  nn::LevelRepair repair;
  at::Tensor divergence;  ///< [sequences]
};

class Guard {
 public:
  Guard(const nn::Decoder& decoder, const Judge& judge, const std::vector<at::Tensor>& batches)
      : decoder_(decoder), judge_(judge), batches_(batches) {}

  /// Chooses the share of a level's repairs.
  /// \param repair  receives the kept repairs
  void judge(const Widths& widths, nn::LevelRepair& repair, Verdict& verdict) const {
    const at::Tensor without = judge_.divergence(widths, nullptr),
                     fitted = judge_.divergence(widths, &repair);
    Choice best{.share = 0, .repair = {}, .divergence = without};
    best.repair.layers.resize(repair.layers.size());
    const double least_gain = judge_.n_sources() > 1 ? 0 : kLeastGain * judge_.mean(without);
    const auto offer = [&](double share, nn::LevelRepair part, const at::Tensor& divergence) {
      const Judge::Change change = judge_.change(without, divergence);
      if (!change.helps() || change.mean > (share > 0 ? -least_gain : 0)) return;
      if (!(judge_.mean(divergence) < judge_.mean(best.divergence))) return;
      best = {share, std::move(part), divergence};
    };
    offer(1, repair, fitted);
    // From large to small shares. If a share does worse than the one before, smaller ones do worse still, so
    // the search can stop once some share helps.
    double last = judge_.mean(fitted);
    for (const double share : kSmallerShares) {
      nn::LevelRepair part = part_of(decoder_, widths, repair, share);
      const at::Tensor divergence = judge_.divergence(widths, &part);
      offer(share, std::move(part), divergence);
      const double mean = judge_.mean(divergence);
      if (mean > last && best.share > 0) break;
      last = mean;
    }
    if (best.share < 1 && repair.output_norm.defined()) {
      // The norm was fitted to the whole repairs. A part of them may need another norm, and a norm alone may
      // help.
      std::vector<nn::LevelRepair> refitted{best.repair};
      refitted.front().output_norm = at::Tensor();
      fit_output_norms(decoder_, batches_, {widths}, refitted);
      const at::Tensor divergence = judge_.divergence(widths, &refitted.front());
      offer(best.share, std::move(refitted.front()), divergence);
    }
    repair = std::move(best.repair);
    verdict.share = best.share;
    verdict.keeps_norm = repair.output_norm.defined();
    verdict.without = judge_.mean(without);
    verdict.fitted = judge_.mean(fitted);
    verdict.kept = judge_.mean(best.divergence);
  }

 private:
  const nn::Decoder& decoder_;
  const Judge& judge_;
  const std::vector<at::Tensor>& batches_;
};

}  // namespace

bool HeldOutText::is_empty() const {
  return std::all_of(sources.begin(), sources.end(), [](const auto& batches) { return batches.empty(); });
}

void guard_levels(const nn::Decoder& decoder, const HeldOutText& text, const std::vector<at::Tensor>& batches,
                  const std::vector<Widths>& levels, std::vector<nn::LevelRepair>& repairs,
                  std::vector<Verdict>& verdicts) {
  if (text.is_empty()) fail("the guard needs held-out text, and none is given");
  const Judge judge(decoder, text);
  const Guard guard(decoder, judge, batches);
  Progress progress("repairs judged on held-out text", static_cast<int64_t>(levels.size()), "levels");
  for (size_t i = 0; i < levels.size(); ++i) {
    guard.judge(levels[i], repairs[i], verdicts[i]);
    progress.advance(1);
  }
}

}  // namespace elastify::recover
