#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "export/export_model.h"

// The step from a reordered directory to an artifact, free of LibTorch.

namespace elastify::pipeline {

/// True for a directory with an artifact's manifest.json.
bool is_artifact(const fs::path& path);
/// Of a directory that `elastify export` wrote in several types: the folder of each, which is an artifact of
/// its own. Empty for an artifact of one type.
std::vector<std::string> artifact_folders(const fs::path& path);

/// Exports a reordered directory.
/// \param imatrix  importance matrix or profile of the source model, to be written along; empty: none
std::vector<exporter::ArtifactFile> write_artifact(const fs::path& reordered,
                                                   const exporter::ExportOptions& options,
                                                   const nlohmann::ordered_json& configuration,
                                                   const fs::path& output, bool replace,
                                                   const fs::path& imatrix = {});

}  // namespace elastify::pipeline
