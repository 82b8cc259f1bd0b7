#include <omp.h>

#include "cli/commands.h"
#include "pipeline/artifact.h"

namespace elastify::cli {

Report run_export(const Globals& globals, const ExportCommand& command) {
  if (globals.threads > 0) omp_set_num_threads(globals.threads);
  const auto files = pipeline::write_artifact(command.reordered, command.options,
                                              {{"export", exporter::to_json(command.options)}},
                                              command.output, globals.force, command.imatrix);
  const bool several = command.options.types.size() > 1;
  Report report;
  report.json = {{"output", command.output.string()}, {"files", nlohmann::ordered_json::array()}};
  for (const auto& file : files) {
    report.json["files"].push_back({{"name", several ? file.type + "/" + file.name : file.name},
                                    {"level", file.nominal},
                                    {"type", file.type},
                                    {"architecture", file.architecture},
                                    {"n_params", file.n_params},
                                    {"bits_per_weight", file.bits_per_weight},
                                    {"bytes", file.bytes},
                                    {"sha256", file.sha256}});
    if (file.adapter) report.json["files"].back()["adapter"] = file.adapter->name;
    if (file.imatrix) report.json["files"].back()["imatrix"] = file.imatrix->name;
    report.text +=
        fmt::format("{:<24} {:>6.3g} {:<8} {:>12} parameters {:>6.3f} bits {:>9.1f} MB{}{}\n",
                    several ? file.type + "/" + file.name : file.name, file.nominal, file.architecture,
                    file.n_params, file.bits_per_weight, static_cast<double>(file.bytes) / 1e6,
                    file.adapter ? "  with " + file.adapter->name : "",
                    file.imatrix ? "  with " + file.imatrix->name : "");
  }
  if (const auto packed = pipeline::packed_file(command.output)) {
    report.json["packed"] = {{"name", packed->filename().string()}, {"bytes", fs::file_size(*packed)}};
    report.text += fmt::format("all of them in {}: {:.1f} MB\n", packed->string(),
                               static_cast<double>(fs::file_size(*packed)) / 1e6);
  }
  if (const fs::path common = command.output / "common.gguf"; fs::exists(common)) {
    report.json["common"] = {{"name", "common.gguf"}, {"bytes", fs::file_size(common)}};
    report.text += fmt::format("embedding, output and norm of all of them in {}: {:.1f} MB\n",
                               common.string(), static_cast<double>(fs::file_size(common)) / 1e6);
  }
  report.text += fmt::format("{} files, {} -> {}\n", files.size(), exporter::to_text(command.options.types),
                             command.output.string());
  return report;
}

}  // namespace elastify::cli
