#pragma once

#include "model/profile.h"
#include "pipeline/config.h"
#include "pipeline/text.h"
#include "profile/communicator.h"
#include "profile/options.h"

namespace elastify::pipeline {

struct Measured {
  Profile profile;
  double seconds = 0;       ///< of measuring, without loading
  double pass_seconds = 0;  ///< of the pass over the data alone; the rest is layer removal and scores
  bool streamed = false;
  MomentSource moments;  ///< null if not wanted
};

/// Profiles with the whole model in memory, or streams it if `work.max_ram` requires that.
/// \param work_directory  see profile_model()
Measured measure_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                         const profile::ProfileOptions& options, const profile::WorkOptions& work = {},
                         const fs::path& work_directory = {}, const Communicator& processes = {});
/// Profiles into a file. Unfinished work is kept beside it, in `<output>.partial`, until the file is
/// complete.
Measured write_profile(const OpenModel& model, const nn::DecoderOptions& compute,
                       const profile::ProfileOptions& options, const profile::WorkOptions& work,
                       const fs::path& output, const Communicator& processes = {});
/// The path where write_profile() keeps unfinished work.
fs::path unfinished_path(const fs::path& output);

/// Halves a default batch until profiling fits into the memory limit, and logs it. A batch that was given is
/// not changed.
void fit_batch(RunConfig& config, const ModelSpec& spec);

/// Loads a profile of this model.
/// \throws UsageError  if the profile is of the same model with its units in another order
Profile load_profile_of(const OpenModel& model, const fs::path& path);

}  // namespace elastify::pipeline
