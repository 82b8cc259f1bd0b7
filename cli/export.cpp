#include <omp.h>

#include "cli/commands.h"
#include "pipeline/artifact.h"

namespace elastify::cli {
namespace {

using Json = nlohmann::ordered_json;

/// The entry of a list in a manifest that is about this level; null if there is none.
const Json* entry_of(const Json& manifest, const char* list, const Json& level) {
  const auto entries = manifest.find(list);
  if (entries == manifest.end()) return nullptr;
  for (const Json& entry : *entries)
    if (entry.at("level") == level) return &entry;
  return nullptr;
}

/// Adds what one manifest lists, as it lies there now.
/// \param folder  "" or "q8_0/"
void report_files(const std::string& folder, const Json& manifest, Report& report) {
  for (const Json& file : manifest.at("files")) {
    Json row{{"name", folder + file.at("name").get<std::string>()}};
    for (const char* key : {"level", "architecture", "n_params", "bits_per_weight", "bytes", "sha256"})
      row[key] = file.at(key);
    row["type"] = manifest.at("type");
    std::string text = fmt::format("{:<24} {:>6.3g} {:<8} {:>12} parameters {:>6.3f} bits {:>9.1f} MB",
                                   row.at("name").get<std::string>(), row.at("level").get<double>(),
                                   row.at("architecture").get<std::string>(),
                                   row.at("n_params").get<int64_t>(), row.at("bits_per_weight").get<double>(),
                                   static_cast<double>(row.at("bytes").get<uint64_t>()) / 1e6);
    for (const auto& [key, list] : {std::pair{"adapter", "adapters"}, {"imatrix", "imatrices"}})
      if (const Json* beside = entry_of(manifest, list, file.at("level"))) {
        row[key] = folder + beside->at("name").get<std::string>();
        text += "  with " + beside->at("name").get<std::string>();
      }
    report.json["files"].push_back(std::move(row));
    report.text += text + "\n";
  }
  for (const auto& [key, what] : {std::pair{"packed", "all of them in {}: {:.1f} MB\n"},
                                  {"common", "embedding, output and norm of all of them in {}: {:.1f} MB\n"}})
    if (const auto holder = manifest.find(key); holder != manifest.end()) {
      Json row = *holder;
      row["name"] = folder + holder->at("name").get<std::string>();
      report.text += fmt::format(fmt::runtime(what), row.at("name").get<std::string>(),
                                 static_cast<double>(row.at("bytes").get<uint64_t>()) / 1e6);
      report.json[key].push_back(std::move(row));
    }
}

}  // namespace

Report run_export(const Globals& globals, const ExportCommand& command) {
  if (globals.threads > 0) omp_set_num_threads(globals.threads);
  pipeline::write_artifact(command.reordered, command.options,
                           {{"export", exporter::to_json(command.options)}}, command.output, globals.force,
                           command.imatrix);
  Report report;
  report.json = {{"output", command.output.string()}, {"files", Json::array()}};
  const auto read = [&](const fs::path& folder) {
    return Json::parse(read_text(command.output / folder / "manifest.json"));
  };
  const auto folders = pipeline::artifact_folders(command.output);
  for (const std::string& folder : folders) report_files(folder + "/", read(folder), report);
  if (folders.empty()) report_files("", read({}), report);
  report.text += fmt::format("{} models, {} -> {}\n", report.json.at("files").size(),
                             exporter::to_text(command.options.types), command.output.string());
  return report;
}

}  // namespace elastify::cli
