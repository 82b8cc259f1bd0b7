#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/claim.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "export/packed.h"
#include "model/checkpoint.h"
#include "model/manifest.h"
#include "pipeline/artifact.h"
#include "report/artifact_view.h"
#include "report/model_view.h"
#include "report/plan_view.h"
#include "report/profile_view.h"

namespace elastify::cli {
namespace {

struct InspectCommand {
  fs::path path, plot;
  bool system = false;
};

/// The full model of an artifact in any of its layouts.
fs::path full_model(const fs::path& artifact) {
  for (const char* name : {"full.gguf", "model.gguf", "full"})
    if (fs::exists(artifact / name)) return artifact / name;
  return artifact / "full-00001-of-00002.gguf";
}

Report inspect_model(const fs::path& path) {
  const bool artifact = fs::is_directory(path) && pipeline::is_artifact(path);
  if (const auto folders = pipeline::artifact_folders(path); !folders.empty())
    throw UsageError(fmt::format("{}: it holds artifacts of several types", path.string()),
                     fmt::format("give one of them: {}", fmt::join(folders, ", ")));
  const Checkpoint checkpoint = Checkpoint::open(artifact ? full_model(path) : path);
  Report report = report::view_model(checkpoint, path);
  if (exporter::PackedFile::is_packed(path)) {
    const exporter::PackedFile packed = exporter::PackedFile::open(path);
    for (const auto& level : packed.levels())
      report::add_level(report,
                        {level.nominal, level.decoder_ratio, level.name, level.architecture, level.bytes});
  } else if (artifact) {
    report::add_levels(report, load_manifest(path));
  } else if (fs::exists(path / "plan.json")) {
    const ModelSpec& spec = checkpoint.spec();
    Report plan = report::view_plan(load_plan(path / "plan.json", spec), spec);
    report.json["levels"] = plan.json["levels"];
    report.text += plan.text;
  }
  return report;
}

}  // namespace

void add_inspect(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<InspectCommand>();
  auto* path = command.add_option("PATH", args->path, "model, reordered directory, artifact or profile.h5");
  auto* system = command
                     .add_flag("--system", args->system,
                               "LibTorch, BLAS, threads, SIMD, CUDA, and a matrix product timed")
                     ->excludes(path);
  command
      .add_option("--plot", args->plot,
                  "SVG file to draw a profile into: sensitivity of the layers, importance of their units")
      ->excludes(system);
  command.footer(
      "Example: elastify inspect models/SmolLM2-135M-Instruct.Q4_1.gguf --json\n"
      "         elastify inspect profile.h5 --plot profile.svg");
  command.callback([args, path, system, &call] {
    if (path->empty() && system->empty()) throw CLI::RequiredError("PATH or --system");
    call.action = [args, &call] {
      if (args->system) return with_torch(call, SystemCommand{});
      if (!fs::exists(args->path))
        throw UsageError(fmt::format("{}: there is no such file or directory", args->path.string()));
      if (args->path.extension() == ".h5") {
        std::optional<OutputLock> lock;
        if (!args->plot.empty()) lock.emplace(claim(call, args->plot, {args->path}));
        return report::view_profile(args->path, args->plot);
      }
      if (!args->plot.empty())
        throw UsageError("--plot draws profiles", "give the profile.h5 that `elastify profile` wrote");
      return inspect_model(args->path);
    };
  });
}

}  // namespace elastify::cli
