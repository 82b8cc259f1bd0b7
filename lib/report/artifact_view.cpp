#include "report/artifact_view.h"

#include <fmt/ranges.h>

#include <vector>

namespace elastify::report {
namespace {

using Json = nlohmann::ordered_json;

double megabytes(uint64_t bytes) {
  return static_cast<double>(bytes) / 1e6;
}

void add_model(Report& report, const ListedModel& model, const std::string& folder,
               const Manifest& manifest) {
  Json row{{"name", folder + model.name},
           {"level", model.level},
           {"architecture", model.architecture},
           {"n_params", model.n_params},
           {"bits_per_weight", model.bits_per_weight},
           {"bytes", model.bytes},
           {"sha256", model.sha256},
           {"type", manifest.type}};
  report.text += fmt::format("{:<24} {:>6.3g} {:<8} {:>12} parameters {:>6.3f} bits {:>9.1f} MB",
                             folder + model.name, model.level, model.architecture, model.n_params,
                             model.bits_per_weight, megabytes(model.bytes));
  const auto add_beside = [&](const char* key, const auto* beside) {
    if (beside == nullptr) return;
    row[key] = folder + beside->name;
    report.text += "  with " + beside->name;
  };
  add_beside("adapter", manifest.adapter_at(model.level));
  add_beside("imatrix", manifest.imatrix_at(model.level));
  report.json["files"].push_back(std::move(row));
  report.text += "\n";
}

}  // namespace

void add_files(Report& report, const std::string& folder, const Manifest& manifest) {
  for (const ListedModel& model : manifest.files) add_model(report, model, folder, manifest);
  const auto add_holder = [&](const char* key, const char* held, const std::optional<WrittenFile>& holder) {
    if (!holder) return;
    const std::string name = folder + holder->name;
    report.text += fmt::format("{} of them in {}: {:.1f} MB\n", held, name, megabytes(holder->bytes));
    report.json[key].push_back({{"name", name}, {"bytes", holder->bytes}, {"sha256", holder->sha256}});
  };
  add_holder("packed", "all", manifest.packed);
  add_holder("common", "embedding, output and norm of all", manifest.common);
}

void add_level(Report& report, const LevelFile& file) {
  report.json["levels"].push_back(
      {{"level", file.level}, {"true_ratio", file.decoder_ratio}, {"file", file.name}});
  report.text += fmt::format("  {:<16} true ratio {:.4f}, {}, {:.1f} MB\n", file.name, file.decoder_ratio,
                             file.architecture, megabytes(file.bytes));
}

void add_levels(Report& report, const Manifest& manifest) {
  for (const ListedModel& model : manifest.files)
    add_level(report, {model.level, model.decoder_ratio, model.name, model.architecture, model.bytes});
  if (manifest.imatrices.empty()) return;
  std::vector<std::string> names;
  for (const ListedImatrix& imatrix : manifest.imatrices) names.push_back(imatrix.name);
  report.text += fmt::format("  importance matrices {}\n", fmt::join(names, ", "));
  report.json["imatrices"] = std::move(names);
}

}  // namespace elastify::report
