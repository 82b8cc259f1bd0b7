#include <CLI/CLI.hpp>

#include <chrono>

#include "base/error.h"
#include "cli/claim.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "export/slice.h"

namespace elastify::cli {
namespace {

struct SliceCommand {
  fs::path packed, output;
  double level = 1;
  bool merge_adapter = false;
};

/// Opens a packed file, or the one in an artifact's directory.
exporter::PackedFile open_packed(const fs::path& path) {
  return exporter::PackedFile::open(fs::is_directory(path) ? path / "model.gguf" : path);
}

Report run_slice(const Invocation& call, const SliceCommand& command) {
  const exporter::PackedFile packed = open_packed(command.packed);
  const exporter::PackedLevel& level = packed.level(command.level);
  std::vector<std::pair<const exporter::EmbeddedFile*, fs::path>> beside;
  if (!command.merge_adapter)
    for (const auto index : {level.adapter, level.imatrix})
      if (index)
        beside.emplace_back(&packed.embedded()[*index],
                            command.output.parent_path() / packed.embedded()[*index].name);
  std::vector<OutputLock> locks;
  locks.push_back(claim(call, command.output, {packed.path()}));
  for (const auto& [file, path] : beside) {
    if (path == command.output)
      throw UsageError(fmt::format("{}: the level's {} goes under this name", path.string(), file->name),
                       "choose another -o");
    locks.push_back(claim(call, path, {packed.path()}));
    packed.check_hash(*file);  // before anything is written
  }
  const auto start = std::chrono::steady_clock::now();
  const std::string sha256 = command.merge_adapter ? exporter::slice_merged(packed, level, command.output)
                                                   : exporter::slice(packed, level, command.output);
  for (const auto& [file, path] : beside) exporter::extract(packed, *file, path);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  Report report;
  const auto bytes = static_cast<int64_t>(fs::file_size(command.output));
  report.json = {{"output", command.output.string()},
                 {"level", level.nominal},
                 {"true_ratio", level.decoder_ratio},
                 {"architecture", level.architecture},
                 {"compensation", level.compensation},
                 {"merged_adapter", command.merge_adapter},
                 {"bytes", bytes},
                 {"sha256", sha256},
                 {"seconds", seconds},
                 {"beside", nlohmann::ordered_json::array()}};
  report.text =
      fmt::format("{}: level {} (true ratio {:.4f}), {}, {:.1f} MB in {:.2f} s{}\n", command.output.string(),
                  level.nominal, level.decoder_ratio, level.architecture, static_cast<double>(bytes) / 1e6,
                  seconds, command.merge_adapter ? ", its adapter merged" : "");
  for (const auto& [file, path] : beside) {
    report.json["beside"].push_back(path.string());
    report.text += fmt::format("{}: {:.1f} kB\n", path.string(), static_cast<double>(file->bytes) / 1e3);
  }
  return report;
}

}  // namespace

void add_slice(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<SliceCommand>();
  command.add_option("FILE", args->packed, "model.gguf that `elastify export --packed` wrote")->required();
  command.add_option("--level", args->level, "1: the plain full model")->required()->check(level_error);
  command.add_flag("--merge-adapter", args->merge_adapter,
                   "add the level's adapter to its weights, in float32, and encode them in the file's type; "
                   "without it, the adapter is written beside as lora-050.gguf");
  command.add_option("-o,--output", args->output, "GGUF file to write")->required();
  command.footer("Example: elastify slice packed/model.gguf --level 0.5 -o level-050.gguf");
  command.callback([args, &call] { call.action = [args, &call] { return run_slice(call, *args); }; });
}

}  // namespace elastify::cli
