#pragma once

#include <nlohmann/json_fwd.hpp>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "export/export_hf.h"
#include "export/export_model.h"

// Exports reordered directories to artifacts, and opens artifacts in all their layouts; free of LibTorch.

namespace elastify::pipeline {

/// True for a directory with an artifact's manifest.json, and for a packed file.
bool is_artifact(const fs::path& path);
/// The folders of a directory that `elastify export` wrote in several types. Each is an artifact. Empty for
/// an artifact of one type.
std::vector<std::string> artifact_folders(const fs::path& path);
/// The packed file of an artifact, or the path itself if it is one; none for other layouts.
std::optional<fs::path> packed_file(const fs::path& path);

/// The models and adapters of an artifact as separate files. They are in the artifact's directory, or for a
/// packed artifact in a temporary directory that is removed with this object.
class PlainFiles {
 public:
  /// \param level  unpack only this level, or nothing for level 1; none: unpack all levels
  /// \throws UsageError  if there is no such level
  /// \throws Error  if the packed file is damaged
  static std::shared_ptr<const PlainFiles> of(const fs::path& artifact, std::optional<double> level);
  ~PlainFiles();
  PlainFiles(const PlainFiles&) = delete;
  PlainFiles& operator=(const PlainFiles&) = delete;

  const fs::path& directory() const { return directory_; }
  /// The model at this level: level-050.gguf, the first part of its split, or the Hugging Face directory
  /// level-050.
  /// \throws UsageError  listing the levels there are
  fs::path file(double level) const;

 private:
  PlainFiles(fs::path artifact, fs::path directory)
      : artifact_(std::move(artifact)), directory_(std::move(directory)) {}
  fs::path artifact_, directory_, packed_;
};

/// Share of the decoder weights that a level keeps, as the artifact states it.
/// \throws UsageError
double stated_ratio(const fs::path& artifact, double level);

/// The level that a GGUF file says it is.
struct StatedLevel {
  double nominal = 1, decoder_ratio = 1;
};
/// \returns none for a file or directory that is not one level's GGUF file, written by `elastify export` or `slice`
std::optional<StatedLevel> stated_level(const fs::path& file);

/// The repairs that a level's GGUF file or Hugging Face directory states it holds.
exporter::HeldRepairs held_repairs(const fs::path& model);
/// \throws Error  if the artifact's manifest lists an adapter for the level and the file is not there
void require_listed_adapter(const fs::path& directory, double level);
/// The adapter of a level in the directory of its model; none if there is none.
/// \throws Error  naming file, tensor and both values, and as require_listed_adapter()
std::optional<LevelRepairs> find_adapter(const fs::path& directory, const Checkpoint& model, double level);

/// Exports a reordered directory.
std::vector<exporter::ArtifactFile> write_artifact(const fs::path& reordered,
                                                   const exporter::ExportOptions& options,
                                                   const nlohmann::ordered_json& configuration,
                                                   const fs::path& output, bool replace,
                                                   const fs::path& tokenizer = {});
/// Exports a reordered directory as Hugging Face directories.
std::vector<exporter::HfLevel> write_hf_artifact(const fs::path& reordered,
                                                 const exporter::HfExportOptions& options,
                                                 const fs::path& output, bool replace);

}  // namespace elastify::pipeline
