#include <omp.h>

#include "cli/commands.h"
#include "model/manifest.h"
#include "pipeline/artifact.h"
#include "report/artifact_view.h"

namespace elastify::cli {

Report run_export(const Globals& globals, const ExportCommand& command) {
  if (globals.threads > 0) omp_set_num_threads(globals.threads);
  pipeline::write_artifact(command.reordered, command.options,
                           {{"export", exporter::to_json(command.options)}}, command.output, globals.force,
                           command.imatrix);
  Report report;
  report.json = {{"output", command.output.string()}, {"files", nlohmann::ordered_json::array()}};
  for (const auto& [folder, manifest] : load_manifests(command.output))
    report::add_files(report, folder, manifest);
  report.text += fmt::format("{} models, {} -> {}\n", report.json.at("files").size(),
                             exporter::to_text(command.options.types), command.output.string());
  return report;
}

}  // namespace elastify::cli
