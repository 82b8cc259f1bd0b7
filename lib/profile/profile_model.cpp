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
                                 batches.digest, options.batch, options.removal_tokens,
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

}  // namespace

Measured profile_model(const nn::Decoder& decoder, const Checkpoint& checkpoint, const TokenBatches& batches,
                       const ProfileOptions& options, const WorkOptions& work, const fs::path& work_directory,
                       const Communicator& processes) {
  const ModelSpec& spec = decoder.spec();
  require_all_halves(spec, "profiling");
  if (spec_hash(spec) != spec_hash(checkpoint.spec())) fail("decoder and checkpoint are different models");
  if (options.batch < 1)
    throw UsageError(fmt::format("profile.batch: expected 1 or more, got {}", options.batch));
  std::vector<Metric> measured_metrics;
  std::copy_if(options.metrics.begin(), options.metrics.end(), std::back_inserter(measured_metrics),
               [](Metric metric) { return needs_data(metric) && !needs_second_moments(metric); });
  const Wanted wanted = wanted_by(options.metrics, options.second_moments);
  const bool passes = !measured_metrics.empty() || wanted.second_moments;
  if ((passes || options.removal_tokens > 0) && (batches.sequences.empty() || batches.seq_len < 2))
    fail("calibration data: expected sequences of 2 tokens or more, got {} of {}", batches.sequences.size(),
         batches.seq_len);
  if (decoder.is_streamed() && work_directory.empty())
    fail("a streamed model needs a directory for what goes from layer to layer");

  Measured result;
  Profile& profile = result.profile;
  profile.spec_hash = spec_hash(spec);
  profile.corpus_digest = batches.digest;
  profile.n_tokens = batches.n_tokens();
  profile.seq_len = batches.seq_len;
  profile.seed = options.seed;
  const std::span<const std::vector<int32_t>> sequences = batches.sequences;

  const auto body = [&] {
    Unfinished unfinished;
    if (!work_directory.empty()) {
      const fs::path own =
          processes.size() == 1
              ? work_directory
              : work_directory / fmt::format("process-{}-of-{}", processes.rank(), processes.size());
      unfinished = Unfinished(own, work_key(decoder, checkpoint, batches, options, processes), work.existing);
    }
    if (options.removal_tokens > 0) {
      const auto n = static_cast<size_t>(std::max<int64_t>(1, options.removal_tokens / batches.seq_len));
      const auto part = sequences.first(std::min(n, sequences.size()));
      RemovalSums sums =
          measure_removal(decoder, make_id_batches(part, options.batch, processes), unfinished);
      processes.sum(sums.without);
      processes.sum({&sums.nll, 1});
      const auto n_predicted = static_cast<double>(count_predicted(part));
      profile.base_loss = sums.nll / n_predicted;
      for (const double nll : sums.without) profile.removal_loss.push_back((nll - sums.nll) / n_predicted);
    }
    if (!passes) return;
    const auto id_batches = make_id_batches(sequences, options.batch, processes);
    auto layers = std::make_shared<std::vector<LayerStatistics>>();
    const auto start = std::chrono::steady_clock::now();
    double nll = decoder.is_streamed()
                     ? collect_streamed(decoder, id_batches, wanted, unfinished)
                     : collect_resident(decoder, id_batches, wanted, unfinished, work.save_every, *layers);
    result.pass_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    processes.sum({&nll, 1});
    profile.base_loss = nll / static_cast<double>(count_predicted(sequences));

    const auto n = static_cast<double>(profile.n_tokens);
    for (const Metric metric : measured_metrics) profile.importance[metric].resize(spec.spaces.size());
    for (int64_t l = 0; l < spec.n_layers; ++l) {
      LayerStatistics sums;
      if (!decoder.is_streamed())
        sums = std::move((*layers)[static_cast<size_t>(l)]);
      else if (id_batches.empty())  // with many processes, some may have no batch
        sums = LayerStatistics::zeros(spec, l, wanted);
      else
        sums = load_streamed(spec, l, wanted, unfinished);
      sum_over(processes, sums);
      for (auto& [metric, scores] : layer_scores(sums, checkpoint, l, measured_metrics, profile.n_tokens)) {
        profile.importance[metric][spec.attention_space(l)] = std::move(scores[0]);
        profile.importance[metric][spec.mlp_space(l)] = std::move(scores[1]);
      }
      checkpoint.release_pages();
      for (size_t site = 0; site < sums.sums.size(); ++site)
        profile.inputs.push_back({to_doubles(sums.sums[site] / n), to_doubles(sums.squares[site] / n)});
      profile.block_influence.push_back(sums.influence[0].item<double>() / n);
      profile.attention_influence.push_back(sums.influence[1].item<double>() / n);
      profile.mlp_influence.push_back(sums.influence[2].item<double>() / n);
      if (!wanted.second_moments) continue;
      // Only the moments are kept for saving: all layers in memory, or each layer as a part on disk.
      LayerStatistics moments;
      moments.moments = sums.moments;
      LayerStatistics* const pointer = &moments;
      if (decoder.is_streamed())
        unfinished.save(fmt::format("moments-{}", l), {&pointer, 1}, {{"n", {n}}});
      else
        (*layers)[static_cast<size_t>(l)] = std::move(moments);
    }
    if (!wanted.second_moments) return;
    result.moments = [layers, unfinished, spec](size_t space) {
      const auto l = spec.spaces[space].layer;
      const size_t half = spec.spaces[space].kind == SpaceKind::kMlp ? 1 : 0;
      if (!layers->empty()) return to_doubles((*layers)[static_cast<size_t>(l)].moments[half]);
      LayerStatistics sums = LayerStatistics::zeros(spec, l, {.inputs = false, .second_moments = true});
      LayerStatistics* const pointer = &sums;
      unfinished.load(fmt::format("moments-{}", l), {&pointer, 1});
      return to_doubles(sums.moments[half]);
    };
  };
  try {
    nn::with_torch_errors(body);
  } catch (const Interrupted&) {
    if (work_directory.empty()) throw;
    throw Interrupted("interrupted; what is finished is kept in " + work_directory.string(),
                      "go on with --resume");
  }
  for (const Metric metric : options.metrics)
    if (metric == Metric::kImatrix)
      add_imatrix_metric(profile, checkpoint, options.imatrix);
    else if (!needs_data(metric))
      add_data_free_metric(profile, checkpoint, metric, options.seed);
  return result;
}

}  // namespace elastify::profile
