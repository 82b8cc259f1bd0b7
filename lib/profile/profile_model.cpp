#include "profile/profile_model.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <span>

#include "base/error.h"
#include "base/hash.h"
#include "base/version.h"
#include "nn/token_ids.h"
#include "nn/torch_error.h"
#include "profile/collect.h"

namespace elastify::profile {
namespace {

/// Cuts the sequences into batches of `size` (the last may be smaller) and returns those of this process:
/// every n-th of n processes.
std::vector<at::Tensor> make_id_batches(std::span<const std::vector<int32_t>> sequences, int64_t size,
                                        const Communicator& processes) {
  std::vector<at::Tensor> batches;
  const auto step = static_cast<size_t>(size);
  for (size_t i = static_cast<size_t>(processes.rank()); i * step < sequences.size();
       i += static_cast<size_t>(processes.size()))
    batches.push_back(
        nn::stack_ids(sequences.subspan(i * step, std::min(step, sequences.size() - i * step))));
  return batches;
}

int64_t count_predicted(std::span<const std::vector<int32_t>> sequences) {
  return std::accumulate(sequences.begin(), sequences.end(), int64_t{0}, [](int64_t n, const auto& sequence) {
    return n + static_cast<int64_t>(sequence.size()) - 1;
  });
}

/// A hash of everything that the sums of this process depend on. The model's files enter by size and time,
/// because hashing them would take longer than much of the work.
std::string work_key(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                     const ProfileOptions& options, const Communicator& processes) {
  std::string text = fmt::format("{} {} {} {} {} {} {} {} {} {} {}", kVersion, spec_hash(checkpoint.spec()),
                                 batches.digest, options.text.batch, options.removal_tokens,
                                 options.second_moments, decoder.is_streamed(), decoder.device().str(),
                                 static_cast<int>(decoder.dtype()), at::get_num_threads(), processes.size());
  for (const Metric metric : options.metrics) text += fmt::format(" {}", name_of(metric));
  for (const fs::path& file : checkpoint.files()) {
    std::error_code gone;  // a mapped file may have been deleted
    text += fmt::format(" {} {}", fs::file_size(file, gone),
                        fs::last_write_time(file, gone).time_since_epoch().count());
  }
  return sha256_hex(text);
}

std::vector<double> to_doubles(const at::Tensor& values) {
  return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

void sum_over(const Communicator& processes, LayerStatistics& layer) {
  layer.for_each([&](const std::string&, at::Tensor& tensor) {
    processes.sum({tensor.data_ptr<double>(), static_cast<size_t>(tensor.numel())});
  });
}

/// One profile while it is measured.
class Measurement {
 public:
  Measurement(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
              const ProfileOptions& options, const Communicator& processes)
      : decoder_(decoder),
        checkpoint_(checkpoint),
        sequences_(batches.sequences),
        options_(options),
        processes_(processes),
        spec_(decoder.spec()),
        wanted_(wanted_by(options.metrics, options.second_moments)) {
    std::copy_if(options.metrics.begin(), options.metrics.end(), std::back_inserter(metrics_),
                 [](Metric metric) { return needs_data(metric) && !needs_second_moments(metric); });
    Profile& profile = result_.profile;
    profile.spec_hash = spec_hash(spec_);
    profile.corpus_digest = batches.digest;
    profile.n_tokens = batches.n_tokens();
    profile.seq_len = batches.seq_len;
    profile.seed = options.text.seed;
  }

  /// Whether the text has to be gone through for importances or moments.
  bool passes() const { return !metrics_.empty() || wanted_.second_moments; }

  /// The loss when each layer is left out, over the first `removal_tokens`.
  void measure_removals(const Unfinished& unfinished) {
    Profile& profile = result_.profile;
    const auto n = static_cast<size_t>(std::max<int64_t>(1, options_.removal_tokens / profile.seq_len));
    const auto part = sequences_.first(std::min(n, sequences_.size()));
    RemovalSums sums =
        measure_removal(decoder_, make_id_batches(part, options_.text.batch, processes_), unfinished);
    processes_.sum(sums.without);
    processes_.sum({&sums.nll, 1});
    const auto n_predicted = static_cast<double>(count_predicted(part));
    profile.base_loss = sums.nll / n_predicted;
    for (const double nll : sums.without) profile.removal_loss.push_back((nll - sums.nll) / n_predicted);
  }

  /// Sums over all of the text, and the scores that they give.
  void measure_importances(const Unfinished& unfinished, double save_every) {
    const auto id_batches = make_id_batches(sequences_, options_.text.batch, processes_);
    const auto start = std::chrono::steady_clock::now();
    double nll = decoder_.is_streamed()
                     ? collect_streamed(decoder_, id_batches, wanted_, unfinished)
                     : collect_resident(decoder_, id_batches, wanted_, unfinished, save_every, *layers_);
    result_.pass_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    processes_.sum({&nll, 1});
    Profile& profile = result_.profile;
    profile.base_loss = nll / static_cast<double>(count_predicted(sequences_));
    for (const Metric metric : metrics_) profile.importance[metric].resize(spec_.spaces.size());
    for (int64_t l = 0; l < spec_.n_layers; ++l) {
      LayerStatistics sums;
      if (!decoder_.is_streamed())
        sums = std::move((*layers_)[static_cast<size_t>(l)]);
      else if (id_batches.empty())  // of many processes, some may have nothing to do
        sums = LayerStatistics::zeros(spec_, l, wanted_);
      else
        sums = load_streamed(spec_, l, wanted_, unfinished);
      sum_over(processes_, sums);
      add_layer(l, sums);
      if (wanted_.second_moments) keep_moments(l, sums, unfinished);
    }
    if (wanted_.second_moments) result_.moments = moment_source(unfinished);
  }

  Measured take() { return std::move(result_); }

 private:
  void add_layer(int64_t l, LayerStatistics& sums) {
    Profile& profile = result_.profile;
    const auto n = static_cast<double>(profile.n_tokens);
    for (auto& [metric, scores] : layer_scores(sums, checkpoint_, l, metrics_, profile.n_tokens)) {
      profile.importance[metric][spec_.attention_space(l)] = std::move(scores[0]);
      profile.importance[metric][spec_.mlp_space(l)] = std::move(scores[1]);
    }
    checkpoint_.release_pages();
    for (size_t site = 0; site < sums.sums.size(); ++site)
      profile.inputs.push_back({to_doubles(sums.sums[site] / n), to_doubles(sums.squares[site] / n)});
    profile.block_influence.push_back(sums.influence[0].item<double>() / n);
    profile.attention_influence.push_back(sums.influence[1].item<double>() / n);
    profile.mlp_influence.push_back(sums.influence[2].item<double>() / n);
  }

  /// Keeps a layer's second moments for saving: in memory, or in a part of the unfinished work.
  void keep_moments(int64_t l, const LayerStatistics& sums, const Unfinished& unfinished) {
    LayerStatistics moments;
    moments.moments = sums.moments;
    LayerStatistics* const pointer = &moments;
    if (decoder_.is_streamed())
      unfinished.save(fmt::format("moments-{}", l), {&pointer, 1},
                      {{"n", {static_cast<double>(result_.profile.n_tokens)}}});
    else
      (*layers_)[static_cast<size_t>(l)] = std::move(moments);
  }

  MomentSource moment_source(const Unfinished& unfinished) const {
    return [layers = layers_, unfinished, spec = spec_](size_t space) {
      const auto l = spec.spaces[space].layer;
      const size_t half = spec.spaces[space].kind == SpaceKind::kMlp ? 1 : 0;
      if (!layers->empty()) return to_doubles((*layers)[static_cast<size_t>(l)].moments[half]);
      LayerStatistics sums = LayerStatistics::zeros(spec, l, {.inputs = false, .second_moments = true});
      LayerStatistics* const pointer = &sums;
      unfinished.load(fmt::format("moments-{}", l), {&pointer, 1});
      return to_doubles(sums.moments[half]);
    };
  }

  const nn::Decoder& decoder_;
  const Checkpoint& checkpoint_;
  std::span<const std::vector<int32_t>> sequences_;
  const ProfileOptions& options_;
  const Communicator& processes_;
  ModelSpec spec_;
  Wanted wanted_;
  std::vector<Metric> metrics_;  ///< those that are measured on text and are no orders
  std::shared_ptr<std::vector<LayerStatistics>> layers_ = std::make_shared<std::vector<LayerStatistics>>();
  Measured result_;
};

/// \throws Error  for text, models and options that do not go together
void check_inputs(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                  const ProfileOptions& options, bool needs_text, bool has_work_directory) {
  require_all_halves(decoder.spec(), "profiling");
  if (spec_hash(decoder.spec()) != spec_hash(checkpoint.spec()))
    fail("decoder and checkpoint are different models");
  if (options.text.batch < 1)
    throw UsageError(fmt::format("profile.batch: expected 1 or more, got {}", options.text.batch));
  if (needs_text && (batches.sequences.empty() || batches.seq_len < 2))
    fail("calibration data: expected sequences of 2 tokens or more, got {} of {}", batches.sequences.size(),
         batches.seq_len);
  if (decoder.is_streamed() && !has_work_directory)
    fail("a streamed model needs a directory for the activations between its layers");
}

}  // namespace

// Seven parameters: the model in both of its forms, the text, and four that callers may leave out.
Measured profile_model(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                       const ProfileOptions& options, const WorkOptions& work, const fs::path& work_directory,
                       const Communicator& processes) {
  Measurement measurement(decoder, checkpoint, batches, options, processes);
  const bool removes = options.removal_tokens > 0;
  check_inputs(decoder, checkpoint, batches, options, measurement.passes() || removes,
               !work_directory.empty());
  try {
    nn::with_torch_errors([&] {
      Unfinished unfinished;
      if (!work_directory.empty()) {
        const fs::path own =
            processes.size() == 1
                ? work_directory
                : work_directory / fmt::format("process-{}-of-{}", processes.rank(), processes.size());
        unfinished =
            Unfinished(own, work_key(decoder, checkpoint, batches, options, processes), work.existing);
      }
      if (removes) measurement.measure_removals(unfinished);
      if (measurement.passes()) measurement.measure_importances(unfinished, work.save_every);
    });
  } catch (const Interrupted&) {
    if (work_directory.empty()) throw;
    throw Interrupted("interrupted; what is finished is kept in " + work_directory.string(),
                      "go on with --resume");
  }
  Measured result = measurement.take();
  for (const Metric metric : options.metrics)
    if (metric == Metric::kImatrix)
      add_imatrix_metric(result.profile, checkpoint, options.imatrix);
    else if (!needs_data(metric))
      add_data_free_metric(result.profile, checkpoint, metric, options.text.seed);
  return result;
}

}  // namespace elastify::profile
