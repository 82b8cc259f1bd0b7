#include "pipeline/outputs.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/path.h"
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
  if (json.is_object())
    return json.contains("format") && json["format"].is_string()
               ? kind_of_format(json["format"].get<std::string>())
               : "";
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

/// The files that elastify writes into a directory, relative to it.
using Names = std::set<std::string>;

void add_artifact(const fs::path& directory, const std::string& folder, Names& names) {
  for (const char* name : {"manifest.json", "plan.json", "permutation.h5"}) names.insert(folder + name);
  const Manifest manifest = load_manifest(directory / folder);
  const auto add_parts = [&](const std::string& name, const std::vector<WrittenFile>& parts) {
    if (!manifest.huggingface) names.insert(folder + name);
    for (const WrittenFile& part : parts) names.insert(folder + part.name);
  };
  for (const ListedFolder& each : manifest.folders) add_artifact(directory, folder + each.name + "/", names);
  for (const ListedModel& file : manifest.files) {
    add_parts(file.name, file.parts);
    // The second part of a split is a link to the common tensors.
    if (const size_t part = file.name.find("-00001-of-00002"); part != std::string::npos)
      names.insert(fmt::format("{}{}-00002-of-00002.gguf", folder, file.name.substr(0, part)));
  }
  for (const ListedAdapter& file : manifest.adapters) add_parts(file.name, file.parts);
  for (const ListedImatrix& file : manifest.imatrices) names.insert(folder + file.name);
  for (const auto& file : {manifest.packed, manifest.common})
    if (file) names.insert(folder + file->name);
}

Names names_in_reordered(const fs::path& directory) {
  Names names{"config.json",    "plan.json",         "permutation.h5",
              "tokenizer.gguf", "model.safetensors", "model.safetensors.index.json"};
  const Companions companions = find_companions(directory);
  for (const auto* found : {&companions.model, &companions.tokenizer})
    names.insert(found->begin(), found->end());
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    const fs::path path = entry.path().lexically_relative(directory);
    const std::string name = path.filename().string();
    if (path == name && name.starts_with("model-") && name.ends_with(".safetensors")) names.insert(name);
    // Adapters that a user trained come without repair.json, or with files of other tools.
    const bool is_repair =
        path.string().starts_with("repairs/level-") && fs::exists(entry.path().parent_path() / "repair.json");
    if (is_repair && (name == "repair.json" || name == "weights.safetensors" ||
                      name == "adapter_config.json" || name == "adapter_model.safetensors"))
      names.insert(path.string());
  }
  return names;
}

/// Whether a killed process left this file. It is removed when its output is written again.
bool is_left_over(const std::string& name) {
  return name.starts_with('.') && (name.find(".tmp-") != std::string::npos || name.ends_with(".lock"));
}

/// \throws UsageError  naming a file that does not belong to the directory
void require_nothing_else(const fs::path& directory) {
  Names names;
  if (has_manifest(directory))
    add_artifact(directory, "", names);
  else
    names = names_in_reordered(directory);
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    const std::string name = entry.path().lexically_relative(directory).string();
    if (entry.is_directory() || names.contains(name) || is_left_over(entry.path().filename().string()))
      continue;
    throw UsageError(fmt::format("{}: contains {}, which elastify did not write", directory.string(), name),
                     kForeign);
  }
}

}  // namespace

std::string kind_of_output(const fs::path& path) {
  try {
    if (fs::is_regular_file(path)) return kind_of_file(path);
    if (!fs::is_directory(path)) return {};
    if (has_manifest(path)) return load_manifest(path), "an artifact";
    return reorder::is_reordered(path) ? "a reordered model" : "";
  } catch (const Error&) {
    return {};  // the file is damaged, or its name misleads
  }
}

std::string require_writable(const fs::path& output, std::span<const fs::path> inputs, bool force) {
  require_apart(output, inputs);
  if (fs::is_symlink(fs::symlink_status(without_trailing_slash(output))))
    throw UsageError(fmt::format("{}: is a symbolic link", output.string()),
                     fmt::format("give what it points to, {}, or choose another -o",
                                 fs::read_symlink(without_trailing_slash(output)).string()));
  require_absent(output, force);
  if (!fs::exists(output) || fs::is_empty(output)) return {};
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
