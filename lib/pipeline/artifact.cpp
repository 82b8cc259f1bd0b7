#include "pipeline/artifact.h"

#include <fmt/ranges.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "export/slice.h"
#include "model/imatrix.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "model/repair.h"
#include "reorder/reorder_model.h"

namespace elastify::pipeline {
namespace {

std::string stem_of(double level) {
  return level >= 1 ? "full" : level_name(level);
}

fs::path make_temporary_directory() {
  constexpr const char* kHint = "TMPDIR says where levels are unpacked";
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  if (error) throw SystemError(fmt::format("no directory for temporary files: {}", error.message()), kHint);
  std::string name = (parent / "elastify-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr)
    throw SystemError(fmt::format("{}: cannot make a directory: {}", parent.string(), std::strerror(errno)),
                      kHint);
  return name;
}

}  // namespace

std::optional<fs::path> packed_file(const fs::path& path) {
  const fs::path inside = path / "model.gguf";
  if (fs::exists(path / "manifest.json") && fs::exists(inside)) return inside;
  if (path.extension() == ".gguf" && exporter::PackedFile::is_packed(path)) return path;
  return std::nullopt;
}

bool is_artifact(const fs::path& path) {
  return fs::exists(path / "manifest.json") || packed_file(path).has_value();
}

std::vector<std::string> artifact_folders(const fs::path& path) {
  const fs::path file = path / "manifest.json";
  std::vector<std::string> names;
  if (!fs::exists(file)) return names;
  try {
    const auto manifest = nlohmann::json::parse(read_text(file));
    if (manifest.contains("folders"))
      for (const auto& folder : manifest.at("folders")) names.push_back(folder.at("name").get<std::string>());
  } catch (const nlohmann::json::exception& error) {
    fail("{}: {}", file.string(), error.what());
  }
  return names;
}

std::shared_ptr<const PlainFiles> PlainFiles::of(const fs::path& artifact, std::optional<double> level) {
  if (const auto folders = artifact_folders(artifact); !folders.empty())
    throw UsageError(fmt::format("{}: it holds artifacts of several types", artifact.string()),
                     fmt::format("give one of them: {}", fmt::join(folders, ", ")));
  const auto packed = packed_file(artifact);
  if (!packed) return std::shared_ptr<const PlainFiles>(new PlainFiles(artifact, artifact));
  const exporter::PackedFile file = exporter::PackedFile::open(*packed);
  std::shared_ptr<PlainFiles> files(new PlainFiles(artifact, make_temporary_directory()));
  files->packed_ = *packed;
  if (!level) {
    exporter::unpack(file, files->directory());
  } else if (const exporter::PackedLevel& wanted = file.level(*level); wanted.nominal < 1) {
    exporter::slice(file, wanted, files->directory() / wanted.name);
    if (wanted.adapter) {
      const exporter::EmbeddedFile& adapter = file.embedded()[*wanted.adapter];
      exporter::extract(file, adapter, files->directory() / adapter.name);
    }
  }
  return files;
}

PlainFiles::~PlainFiles() {
  std::error_code ignored;
  if (directory_ != artifact_) fs::remove_all(directory_, ignored);
}

fs::path PlainFiles::file(double level) const {
  const std::string stem = stem_of(level);
  if (level >= 1 && !packed_.empty()) return packed_;  // as it is, it is the full model
  for (const char* suffix : {".gguf", "-00001-of-00002.gguf"})
    if (fs::path file = directory_ / (stem + suffix); fs::exists(file)) return file;
  std::vector<std::string> present;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    const bool second = name.ends_with("-00002-of-00002.gguf");
    if ((name.starts_with("level-") || name.starts_with("full")) && name.ends_with(".gguf") && !second)
      present.push_back(name);
  }
  std::sort(present.begin(), present.end());
  throw UsageError(fmt::format("{}: no level {}", artifact_.string(), level),
                   fmt::format("it holds {}", fmt::join(present, ", ")));
}

double stated_ratio(const fs::path& artifact, double level) {
  if (const auto packed = packed_file(artifact))
    return exporter::PackedFile::open(*packed).level(level).decoder_ratio;
  const auto manifest = nlohmann::json::parse(read_text(artifact / "manifest.json"));
  for (const auto& file : manifest.at("files"))
    if (stem_of(file.at("level").get<double>()) == stem_of(level))
      return file.at("decoder_ratio").get<double>();
  throw UsageError(fmt::format("{}: no level {} in manifest.json", artifact.string(), level));
}

std::vector<exporter::ArtifactFile> write_artifact(const fs::path& reordered,
                                                   const exporter::ExportOptions& options,
                                                   const nlohmann::ordered_json& configuration,
                                                   const fs::path& output, bool replace,
                                                   const fs::path& imatrix) {
  require_absent(output, replace);
  if (!reorder::is_reordered(reordered))
    throw UsageError(fmt::format("{}: not a reordered directory (no permutation.h5 and plan.json in it)",
                                 reordered.string()),
                     "run `elastify reorder` first and give the directory that it writes");
  const Checkpoint model = Checkpoint::open(reordered);
  const auto vocabulary = find_vocabulary(reordered, {});
  const ElasticPlan plan = load_plan(reordered / "plan.json", model.spec());
  const Permutation permutation = load_permutation(reordered / "permutation.h5", model.spec());
  nlohmann::ordered_json resolved = configuration;
  resolved["storage"] = info(model.lossless_dtype()).name;
  std::optional<Imatrix> measured;
  if (!imatrix.empty()) {
    measured = open_imatrix(imatrix, model.spec());
    resolved["imatrix"] = imatrix.string();
  }
  std::vector<LevelRepairs> repairs;
  for (const Level& level : plan.levels)
    if (auto found = find_repairs(reordered, model.spec(), level)) repairs.push_back(std::move(*found));
  AtomicDirectory directory(output, replace);
  auto files = exporter::export_model(model, vocabulary ? &*vocabulary : nullptr, permutation, plan, options,
                                      resolved, directory.path(), measured ? &*measured : nullptr, repairs);
  // With these two an artifact can be verified against the source alone.
  std::vector<fs::path> folders = {directory.path()};
  if (options.types.size() > 1) {
    folders.clear();
    for (const auto& type : options.types) folders.push_back(directory.path() / type.name());
  }
  for (const fs::path& folder : folders)
    for (const char* name : {"permutation.h5", "plan.json"}) fs::copy_file(reordered / name, folder / name);
  directory.commit();
  return files;
}

}  // namespace elastify::pipeline
