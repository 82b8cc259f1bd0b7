#include "cli/export.h"

#include <omp.h>

#include "cli/claim.h"
#include "model/manifest.h"
#include "pipeline/artifact.h"
#include "report/artifact_view.h"

namespace elastify::cli {

Report run_export(const Invocation& call, const ExportCommand& command) {
  if (call.config.threads > 0) omp_set_num_threads(static_cast<int>(call.config.threads));
  const exporter::ExportOptions& options = call.config.export_;
  const OutputLock lock = claim(call, command.output, {command.reordered});
  pipeline::write_artifact(command.reordered, options, {{"export", exporter::to_json(options)}},
                           command.output, call.force, call.config.tokenizer);
  Report report;
  report.json = {{"output", command.output.string()}, {"files", nlohmann::ordered_json::array()}};
  for (const auto& [folder, manifest] : load_manifests(command.output))
    report::add_files(report, folder, manifest);
  report.text += fmt::format("{} models, {} -> {}\n", report.json.at("files").size(),
                             exporter::to_text(options.types), command.output.string());
  return report;
}

}  // namespace elastify::cli
