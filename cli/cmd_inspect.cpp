#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include <algorithm>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/inspect_profile.h"
#include "cli/options.h"
#include "cli/plan_text.h"
#include "export/packed.h"
#include "model/permutation.h"
#include "pipeline/artifact.h"

namespace elastify::cli {
namespace {

using nlohmann::ordered_json;

struct InspectCommand {
  fs::path path, plot;
  bool system = false;
};

/// Parameters by the part of the model that they are in.
ordered_json params_by_part(const ModelSpec& spec) {
  ordered_json parts{{"embedding", 0}, {"attention", 0}, {"mlp", 0}, {"norms", 0}, {"output", 0}};
  for (const TensorSpec& tensor : spec.tensors) {
    const char* part = "attention";
    switch (tensor.role) {
      case Role::kTokenEmbedding:
        part = "embedding";
        break;
      case Role::kOutput:
        part = "output";
        break;
      case Role::kAttnNorm:
      case Role::kFfnNorm:
      case Role::kOutputNorm:
      case Role::kQueryNorm:
      case Role::kKeyNorm:
        part = "norms";
        break;
      case Role::kGate:
      case Role::kUp:
      case Role::kDown:
      case Role::kGateBias:
      case Role::kUpBias:
      case Role::kDownBias:
        part = "mlp";
        break;
      default:
        break;
    }
    parts[part] = parts[part].get<int64_t>() + n_elements(tensor.shape);
  }
  return parts;
}

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
  const ModelSpec& spec = checkpoint.spec();
  Report report;
  ordered_json& json = report.json;
  json = {{"path", path.string()},
          {"family", spec.family},
          {"n_layers", spec.n_layers},
          {"d_model", spec.d_model},
          {"n_heads", spec.n_heads()},
          {"n_kv_heads", spec.n_kv_heads()},
          {"head_dim", spec.head_dim},
          {"d_ff", spec.d_ff()},
          {"n_vocab", spec.n_vocab},
          {"max_seq", spec.max_seq},
          {"tied", spec.tied},
          {"n_params", n_params(spec, full_widths(spec))},
          {"n_decoder_params", n_decoder_params(spec, full_widths(spec))},
          {"params", params_by_part(spec)},
          {"spec_hash", spec_hash(spec)}};
  std::map<std::string, int> stored;
  for (size_t i = 0; i < spec.tensors.size(); ++i)
    ++stored[std::string(info(checkpoint.stored_dtype(i)).name)];
  json["stored_types"] = stored;
  if (!spec.is_uniform()) {
    json["layer_kv_heads"] = spec.layer_kv_heads;
    json["layer_d_ff"] = spec.layer_d_ff;
  }
  std::vector<std::string> left_out;
  for (const AxisSpace& space : spec.spaces)
    if (space.n_units == 0) left_out.push_back(space.name);

  report.text = fmt::format("{}: {} decoder, {} layers, {} parameters ({} in decoder layers)\n",
                            path.string(), spec.family, spec.n_layers, json["n_params"].get<int64_t>(),
                            json["n_decoder_params"].get<int64_t>());
  report.text += fmt::format(
      "  model width {}, MLP width {}, {} heads of {} in {} KV groups, vocabulary {} ({}), context {}\n",
      spec.d_model, spec.d_ff(), spec.n_heads(), spec.head_dim, spec.n_kv_heads(), spec.n_vocab,
      spec.tied ? "tied" : "untied", spec.max_seq);
  for (const auto& [part, count] : json["params"].items())
    report.text += fmt::format("  {:<10} {:>14}\n", part, count.get<int64_t>());
  std::vector<std::string> types;
  for (const auto& [type, count] : stored) types.push_back(fmt::format("{} x{}", type, count));
  report.text += fmt::format("  stored as  {}\n", fmt::join(types, ", "));
  if (!left_out.empty()) report.text += fmt::format("  left out   {}\n", fmt::join(left_out, ", "));

  ordered_json spaces = ordered_json::array();
  for (size_t i = 0; i < spec.spaces.size(); ++i)
    spaces.push_back({{"name", spec.spaces[i].name},
                      {"n_units", spec.spaces[i].n_units},
                      {"params_per_unit", params_per_unit(spec, i)}});
  report.text += fmt::format(
      "  spaces     {} attention spaces of {} KV groups, {} parameters each; {} MLP spaces of {} neurons, {} "
      "each\n",
      spec.n_layers, spec.n_kv_heads(), params_per_unit(spec, spec.attention_space(0)), spec.n_layers,
      spec.d_ff(), params_per_unit(spec, spec.mlp_space(0)));
  json["spaces"] = std::move(spaces);
  json["levels"] = ordered_json::array();
  if (exporter::PackedFile::is_packed(path)) {
    const exporter::PackedFile packed = exporter::PackedFile::open(path);
    for (const auto& level : packed.levels()) {
      json["levels"].push_back(
          {{"level", level.nominal}, {"true_ratio", level.decoder_ratio}, {"file", level.name}});
      report.text +=
          fmt::format("  {:<16} true ratio {:.4f}, {}, {:.1f} MB\n", level.name, level.decoder_ratio,
                      level.architecture, static_cast<double>(level.bytes) / 1e6);
    }
  } else if (artifact) {
    const auto manifest = nlohmann::json::parse(read_text(path / "manifest.json"));
    for (const auto& file : manifest.at("files")) {
      json["levels"].push_back(
          {{"level", file.at("level")}, {"true_ratio", file.at("decoder_ratio")}, {"file", file.at("name")}});
      report.text +=
          fmt::format("  {:<16} true ratio {:.4f}, {}, {:.1f} MB\n", file.at("name").get<std::string>(),
                      file.at("decoder_ratio").get<double>(), file.at("architecture").get<std::string>(),
                      file.at("bytes").get<double>() / 1e6);
    }
    if (manifest.contains("imatrices")) {
      std::vector<std::string> names;
      for (const auto& file : manifest.at("imatrices")) names.push_back(file.at("name").get<std::string>());
      report.text += fmt::format("  importance matrices {}\n", fmt::join(names, ", "));
      json["imatrices"] = std::move(names);
    }
  } else if (fs::exists(path / "plan.json")) {
    Report plan = describe(load_plan(path / "plan.json", spec), spec);
    json["levels"] = plan.json["levels"];
    report.text += plan.text;
  }
  return report;
}

}  // namespace

void add_inspect(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand(
      "inspect", "what a model, an output or a profile holds; --system: what this machine has");
  auto args = std::make_shared<InspectCommand>();
  auto* path = command->add_option("PATH", args->path, "model, reordered directory, artifact or profile.h5");
  auto* system = command
                     ->add_flag("--system", args->system,
                                "LibTorch, BLAS, threads, SIMD, CUDA, and a matrix product timed")
                     ->excludes(path);
  command
      ->add_option("--plot", args->plot,
                   "SVG file to draw a profile into: sensitivity of the layers, importance of their units")
      ->excludes(system);
  command->footer(
      "Example: elastify inspect models/SmolLM2-135M-Instruct.Q4_1.gguf --json\n"
      "         elastify inspect profile.h5 --plot profile.svg");
  command->callback([args, path, system, &globals, &action] {
    if (path->empty() && system->empty()) throw CLI::RequiredError("PATH or --system");
    action = [args, &globals] {
      if (args->system) return run_system(globals);
      if (!fs::exists(args->path))
        throw UsageError(fmt::format("{}: there is no such file or directory", args->path.string()));
      if (args->path.extension() == ".h5") return inspect_profile(args->path, args->plot, globals.force);
      if (!args->plot.empty())
        throw UsageError("--plot draws profiles", "give the profile.h5 that `elastify profile` wrote");
      return inspect_model(args->path);
    };
  });
}

}  // namespace elastify::cli
