#include "pipeline/artifact.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/imatrix.h"
#include "model/permutation.h"
#include "model/repair.h"
#include "reorder/reorder_model.h"

namespace elastify::pipeline {

bool is_artifact(const fs::path& path) {
  return fs::exists(path / "manifest.json");
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
