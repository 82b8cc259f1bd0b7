#include "pipeline/outputs.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "data/companions.h"
#include "io/gguf.h"
#include "io/hdf5.h"
#include "model/manifest.h"
#include "reorder/reorder_model.h"
#include "report/svg_chart.h"

namespace elastify::pipeline {
namespace {

constexpr const char* kForeign =
    "--force replaces only what elastify wrote; move it away, or choose another -o";

fs::path resolved(const fs::path& path) {
  std::error_code error;
  const fs::path found = fs::weakly_canonical(path, error);
  const fs::path& known = error ? path : found;
  return known.has_filename() ? known : known.parent_path();
}

/// Whether `path` is `directory` or lies in it; both absolute.
bool is_within(const fs::path& path, const fs::path& directory) {
  return std::mismatch(directory.begin(), directory.end(), path.begin(), path.end()).first == directory.end();
}

void require_apart(const fs::path& output, std::span<const fs::path> inputs) {
  const fs::path to = resolved(output);
  for (const fs::path& input : inputs) {
    if (input.empty()) continue;
    const fs::path from = resolved(input);
    const char* relation = to == from            ? "is"
                           : is_within(from, to) ? "contains"
                           : is_within(to, from) ? "lies in"
                                                 : nullptr;
    if (relation != nullptr)
      throw UsageError(fmt::format("{}: {} the input {}", output.string(), relation, input.string()),
                       "choose another -o");
  }
}

/// "a profile" for elastify.profile.
std::string kind_of_format(std::string_view format) {
  constexpr std::pair<std::string_view, std::string_view> kKinds[] = {
      {"elastify.profile", "a profile"},
      {"elastify.permutation", "a permutation"},
      {"elastify.plan", "a plan"},
      {"elastify.artifact", "a manifest"}};
  for (const auto& [name, kind] : kKinds)
    if (format == name) return std::string(kind);
  return {};
}

std::string kind_of_gguf(const fs::path& path) {
  const GgufFile file = GgufFile::open(path);
  for (const auto& [key, value] : file.metadata().entries())
    if (key.starts_with("elastify.")) return "a GGUF file";
  return {};
}

std::string kind_of_text(const std::string& text) {
  if (text.starts_with("<svg") && text.find(report::kSvgMark) != std::string::npos) return "a chart";
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_object()) return kind_of_format(json.value("format", std::string{}));
  const bool is_table = json.is_array() && !json.empty() && json.front().is_object() &&
                        json.front().contains("runtime") && json.front().contains("avg_ns");
  return is_table ? "a latency table" : "";
}

std::string kind_of_file(const fs::path& path) {
  if (GgufFile::has_magic(path)) return kind_of_gguf(path);
  if (Hdf5Reader::has_magic(path)) {
    const Hdf5Reader reader(path);
    return reader.has_attribute("format") ? kind_of_format(reader.string_attribute("format")) : "";
  }
  constexpr uint64_t kMostText = uint64_t{1} << 26;
  return fs::file_size(path) <= kMostText ? kind_of_text(read_text(path)) : "";
}

/// Names of what belongs into an artifact's folder: what its manifest lists, and what is beside it.
std::set<std::string> names_in_artifact(const fs::path& folder) {
  std::set<std::string> names{"manifest.json", "plan.json", "permutation.h5"};
  const Manifest manifest = load_manifest(folder);
  for (const ListedFolder& each : manifest.folders) names.insert(each.name);
  for (const ListedModel& file : manifest.files) {
    names.insert(file.name);
    // The second part of a split is a link to the common tensors.
    if (const size_t part = file.name.find("-00001-of-00002"); part != std::string::npos)
      names.insert(fmt::format("{}-00002-of-00002.gguf", file.name.substr(0, part)));
  }
  for (const ListedAdapter& file : manifest.adapters) names.insert(file.name);
  for (const ListedImatrix& file : manifest.imatrices) names.insert(file.name);
  for (const auto& file : {manifest.packed, manifest.common})
    if (file) names.insert(file->name);
  return names;
}

std::set<std::string> names_in_reordered(const fs::path& directory) {
  std::set<std::string> names{"config.json",   "plan.json",         "permutation.h5",
                              "repairs",       "model.safetensors", "model.safetensors.index.json",
                              "tokenizer.gguf"};
  const Companions companions = find_companions(directory);
  for (const auto* found : {&companions.model, &companions.tokenizer})
    names.insert(found->begin(), found->end());
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("model-") && name.ends_with(".safetensors")) names.insert(name);
  }
  return names;
}

/// \throws UsageError  naming an entry that does not belong to the directory
void require_nothing_else(const fs::path& directory) {
  const bool artifact = has_manifest(directory);
  const std::set<std::string> names = artifact ? names_in_artifact(directory) : names_in_reordered(directory);
  for (const auto& entry : fs::directory_iterator(directory))
    if (!names.contains(entry.path().filename().string()))
      throw UsageError(fmt::format("{}: contains {}, which elastify did not write", directory.string(),
                                   entry.path().filename().string()),
                       kForeign);
  if (!artifact) return;
  for (const ListedFolder& folder : load_manifest(directory).folders)
    if (fs::is_directory(directory / folder.name)) require_nothing_else(directory / folder.name);
}

}  // namespace

std::string kind_of_output(const fs::path& path) {
  try {
    if (fs::is_regular_file(path)) return kind_of_file(path);
    if (!fs::is_directory(path)) return {};
    if (has_manifest(path)) return load_manifest(path), "an artifact";
    return reorder::is_reordered(path) ? "a reordered model" : "";
  } catch (const Error&) {
    return {};  // not even readable as what its name or first bytes say
  }
}

std::string require_writable(const fs::path& output, std::span<const fs::path> inputs, bool force) {
  require_apart(output, inputs);
  if (fs::is_symlink(fs::symlink_status(output)))
    throw UsageError(
        fmt::format("{}: is a symbolic link", output.string()),
        fmt::format("give what it points to, {}, or choose another -o", fs::read_symlink(output).string()));
  require_absent(output, force);
  if (!fs::exists(output) || (fs::is_directory(output) && fs::is_empty(output))) return {};
  const std::string kind = kind_of_output(output);
  if (kind.empty())
    throw UsageError(fmt::format("{}: elastify did not write this", output.string()), kForeign);
  if (fs::is_directory(output)) require_nothing_else(output);
  return kind;
}

void require_own_directory(const fs::path& directory, const char* mark, std::span<const fs::path> names,
                           std::span<const fs::path> inputs) {
  const bool is_own = fs::exists(directory / mark);
  for (const fs::path& name : names) {
    const fs::path path = directory / name;
    require_apart(path, inputs);
    if (!is_own || fs::is_directory(path)) require_writable(path, inputs, true);
  }
}

std::vector<fs::path> inputs_of(const RunConfig& config) {
  std::vector<fs::path> inputs{config.model, config.tokenizer, config.profile.imatrix, config.export_.imatrix,
                               config.reorder.plan.budget.table};
  for (const auto* files : {&config.profile.text.data, &config.eval.text.data, &config.eval.tasks})
    for (const std::string& file : *files)
      if (file != "self") inputs.emplace_back(file);
  return inputs;
}

}  // namespace elastify::pipeline
