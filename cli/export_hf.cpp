#include <omp.h>

#include "base/error.h"
#include "cli/claim.h"
#include "cli/export.h"
#include "pipeline/artifact.h"

namespace elastify::cli {
namespace {

exporter::HfExportOptions options_of(const Invocation& call) {
  const exporter::ExportOptions& given = call.config.export_;
  exporter::HfExportOptions options;
  options.levels = given.levels;
  if (!call.given("export.type")) return options;
  if (given.types.size() > 1)
    throw UsageError(fmt::format("type: {} are several, and with --hf one is written", to_text(given.types)),
                     "export once per type");
  for (const exporter::WeightType& type : given.types) {
    if (!type.is_float())
      throw UsageError(fmt::format("type: a Hugging Face directory cannot be written as {}", type.name()),
                       "take f32, f16 or bf16, or leave out --hf: GGUF files hold quantised types");
    options.type = dtype_from_name(type.name());
  }
  return options;
}

}  // namespace

Report run_export_hf(const Invocation& call, const ExportCommand& command) {
  if (call.config.threads > 0) omp_set_num_threads(static_cast<int>(call.config.threads));
  if (!call.config.tokenizer.empty())
    throw UsageError("tokenizer: Hugging Face directories get the tokenizer files of the reordered directory",
                     "leave out --tokenizer, or put the files there");
  const OutputLock lock = claim(call, command.output, {command.reordered});
  const auto levels =
      pipeline::write_hf_artifact(command.reordered, options_of(call), command.output, call.force);
  const bool has_tokenizer = levels.front().has_tokenizer;
  Report report;
  report.json = {{"output", command.output.string()},
                 {"tokenizer", has_tokenizer},
                 {"files", nlohmann::ordered_json::array()}};
  for (const auto& level : levels) {
    report.json["files"].push_back({{"name", level.name},
                                    {"level", level.nominal},
                                    {"architecture", level.architecture},
                                    {"n_params", level.n_params},
                                    {"bytes", level.bytes()}});
    if (level.adapter) report.json["files"].back()["adapter"] = level.adapter->name;
    report.text +=
        fmt::format("{:<12} {:>6.3g} {:<18} {:>12} parameters {:>9.1f} MB{}\n", level.name, level.nominal,
                    level.architecture, level.n_params, static_cast<double>(level.bytes()) / 1e6,
                    level.adapter ? "  with " + level.adapter->name : "");
  }
  if (!has_tokenizer)
    report.text += fmt::format("without a tokenizer: {} has none; put the model's own into each directory\n",
                               command.reordered.string());
  report.text += fmt::format("{} directories -> {}\n", levels.size(), command.output.string());
  return report;
}

}  // namespace elastify::cli
