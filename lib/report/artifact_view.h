#pragma once

#include <cstdint>
#include <string>

#include "model/manifest.h"
#include "report/report.h"

// Views of an artifact. Each adds its lines to a report.

namespace elastify::report {

/// The files of an artifact, with types, sizes and hashes: `files`, and `packed` or `common` in JSON.
/// \param folder  that the manifest's names are relative to: "" or "q8_0/"
void add_files(Report& report, const std::string& folder, const Manifest& manifest);

/// One level of an artifact that was opened.
struct LevelFile {
  double level = 1, decoder_ratio = 1;
  std::string name, architecture;
  uint64_t bytes = 0;
};
/// A line, and in JSON an entry of `levels`.
void add_level(Report& report, const LevelFile& file);
/// All levels that a manifest lists, and its importance matrices.
void add_levels(Report& report, const Manifest& manifest);

}  // namespace elastify::report
