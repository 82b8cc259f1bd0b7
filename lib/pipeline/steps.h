#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>
#include <vector>

#include "eval/evaluate.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "model/profile.h"
#include "pipeline/artifact.h"
#include "pipeline/config.h"
#include "profile/communicator.h"

namespace elastify::pipeline {

/// Added to second moments' diagonal for orders and errors, in units of its mean.
inline constexpr double kMomentRidge = 1e-3;

/// A model with whatever its text needs, opened.
struct OpenModel {
  Checkpoint checkpoint;
  std::optional<Vocabulary> vocabulary;
  std::optional<ElasticPlan> plan;  ///< of a reordered directory, or read out of an artifact
  std::shared_ptr<const PlainFiles> files = nullptr;  ///< of an artifact
  std::string permutation_digest = {};                ///< of a reordered directory
};

/// Opens a model, a reordered directory, or one file of an artifact (its full model, or the level asked for).
/// \throws Error  if `level` is asked of something without levels
OpenModel open_model(const fs::path& path, const fs::path& tokenizer, std::optional<double> level = {});

/// Sequences from text files, or sampled from the model where `data` is "self".
/// \param seed  draws sequences over the whole text; none: the first ones
TokenBatches load_batches(const OpenModel& model, const nn::Decoder& decoder,
                          const std::vector<std::string>& data, int64_t seq, int64_t tokens,
                          std::optional<uint64_t> seed);

struct Measured {
  Profile profile;
  double seconds = 0;       ///< of measuring, loading left out
  double pass_seconds = 0;  ///< of these, of the pass over the data; the rest is layer removal and scores
  bool streamed = false;
  MomentSource moments;  ///< null if not wanted
};
/// Profiles with all of the model in memory, or streamed where `work.max_ram` asks for it.
/// \param work_directory  see profile_model()
Measured measure_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                         const profile::ProfileOptions& options, const profile::WorkOptions& work = {},
                         const fs::path& work_directory = {}, const Communicator& processes = {});
/// Profiles into a file; unfinished work lies beside it, in `<output>.partial`, until the file is complete.
Measured write_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                       const profile::ProfileOptions& options, const profile::WorkOptions& work,
                       const fs::path& output, const Communicator& processes = {});
/// A profile of this very model.
/// \throws UsageError  if it is of the same model in another order of its units
Profile load_profile_of(const OpenModel& model, const fs::path& path);
/// Where write_profile() keeps unfinished work.
fs::path unfinished_path(const fs::path& output);

/// Orders the units of every space by the metric of `options`.
/// \param profile  may be null for a metric that needs no data
/// \param moments  null unless the metric is worked out of second moments
/// \param device   that works it out of them
Permutation rank(const Checkpoint& model, const Profile* profile, const MomentSource& moments,
                 const ReorderSection& options, int64_t seed, const std::string& device = "cpu");
/// Second moments out of a profile's file; null if it holds none.
MomentSource moments_of(const fs::path& profile, const ModelSpec& spec);

/// The model with its units in this order, in memory: float32, moved as each tensor is loaded.
Checkpoint arranged(const Checkpoint& model, const Permutation& order);

struct Calibration;

/// Ranks, plans and writes the reordered directory, repairs of its levels included; returns the plan.
/// \param profile, moments  may be null if neither the metric nor the plan needs them
/// \param calibration  for repairs and measured plans; may be null if `options` asks for neither
/// \param given  a plan of this model, instead of making one; null: none
ElasticPlan write_reordered(const OpenModel& model, const Profile* profile, const MomentSource& moments,
                            const ReorderSection& options, int64_t seed, const fs::path& output, bool replace,
                            const Calibration* calibration = nullptr, const ElasticPlan* given = nullptr);

/// Share of the decoder weights that a level keeps, from the plan beside it; 1 where there are no levels.
double true_ratio(const fs::path& path, std::optional<double> level);

// What results depend on, by content, for the keys under which they are kept.
std::string content_hash(const std::vector<fs::path>& files);
/// Of text files; `self` stands for no file.
std::string text_hash(const std::vector<std::string>& data);
/// Of the importance matrix that scores are read off, and the table of latencies that a plan goes by; of
/// nothing where there is none.
std::string imatrix_hash(const profile::ProfileOptions& options);
std::string latencies_hash(const ReorderSection& options);
/// Weights, configuration and vocabulary.
nlohmann::ordered_json identity(const OpenModel& model);
/// Device, compute type and threads.
nlohmann::ordered_json compute_key(const RunConfig& config);

}  // namespace elastify::pipeline
