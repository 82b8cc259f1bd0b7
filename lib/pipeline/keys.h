#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "pipeline/config.h"
#include "pipeline/open_model.h"

// Keys of kept results. A key covers everything that the result depends on, by content.

namespace elastify::pipeline {

/// SHA-256 over the contents of files.
std::string content_hash(const std::vector<fs::path>& files);
/// SHA-256 over the contents of text files. `self` is not a file and is left out.
std::string text_hash(const std::vector<std::string>& data);

/// Identifies a model by its weights, configuration and vocabulary.
nlohmann::ordered_json identity(const OpenModel& model);

/// The options that change these results, and the contents of the files that they name.
nlohmann::ordered_json key_of(const RunConfig& config, options::Result results);

/// The key of a result: a digest of its name, its inputs and the version of this program.
std::string digest_of(std::string_view result, const nlohmann::ordered_json& inputs);

}  // namespace elastify::pipeline
