#pragma once

#include <map>
#include <span>
#include <string>

#include "base/file.h"
#include "profile/options.h"
#include "profile/statistics.h"

namespace elastify::profile {

/// The finished parts of unfinished work: a directory of files, each of which appears complete or not at all.
/// Resumed work ends with the same bytes as work that was never stopped.
class Unfinished {
 public:
  Unfinished() = default;  ///< keeps nothing
  /// \param key  stands for everything that the result depends on
  /// \throws UsageError  if there is unfinished work that `existing` allows neither to resume nor to replace
  Unfinished(const fs::path& directory, const std::string& key, WorkOptions::Existing existing);

  bool is_kept() const { return !directory_.empty(); }
  bool has(const std::string& part) const;
  fs::path path(const std::string& name) const { return directory_ / name; }

  using Numbers = std::map<std::string, std::vector<double>>;
  /// Saves a part. Does nothing if nothing is kept.
  void save(const std::string& part, std::span<LayerStatistics* const> layers, const Numbers& numbers) const;
  /// Loads a part: fills those of the layers' tensors that it has.
  /// \returns the part's numbers
  Numbers load(const std::string& part, std::span<LayerStatistics* const> layers) const;
  /// Removes everything.
  void discard() const;

 private:
  fs::path file(const std::string& part) const { return directory_ / (part + ".h5"); }
  fs::path directory_;
};

}  // namespace elastify::profile
