#pragma once

#include <span>
#include <string>

#include "base/file.h"
#include "pipeline/config.h"

namespace elastify::pipeline {

/// Recognises an output of elastify by its header, keys or manifest.
/// \returns a description such as "a profile"; empty if nothing is at `path`, or elastify did not write it
std::string kind_of_output(const fs::path& path);

/// Checks that a command may write `output`. With `force`, it may replace what elastify wrote.
/// \param inputs  files and directories that the command reads; empty paths are left out
/// \throws UsageError  if `output` is, contains or lies in an input; is a symbolic link; exists without `force`;
///                     or is, or contains, something that elastify did not write
/// \returns the description of the replaced output, as kind_of_output(); empty if there is none
std::string require_writable(const fs::path& output, std::span<const fs::path> inputs, bool force);

/// Checks the files and directories of these names that a run or a sweep keeps in its directory. It may
/// replace all of them in a directory that has its mark, and otherwise only outputs of elastify.
/// \param mark  the file or folder by which the run or sweep knows its directory, such as ".steps"
/// \throws UsageError  as require_writable()
void require_own_directory(const fs::path& directory, const char* mark, std::span<const fs::path> names,
                           std::span<const fs::path> inputs);

/// The files that the options name: model, tokenizer, texts, tasks, importance matrices, latency table.
std::vector<fs::path> inputs_of(const RunConfig& config);

}  // namespace elastify::pipeline
