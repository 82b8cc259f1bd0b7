#include <CLI/CLI.hpp>

#include "base/size.h"
#include "cli/commands.h"
#include "cli/options.h"

namespace elastify::cli {

void add_export(CLI::App& app, const Globals& globals, Action& action) {
  auto* command = app.add_subcommand(
      "export", "write a GGUF file or a Hugging Face directory per level, for stock runtimes");
  auto args = std::make_shared<ExportCommand>();
  command->add_option("OUT", args->reordered, "directory that `elastify reorder` wrote")->required();
  auto* type = command->add_option_function<std::string>(
      "--type",
      [args](const std::string& names) { args->options.types = exporter::weight_types_named(names); },
      "type of the matrices: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, or a mixture: "
      "q4_k_m, q5_k_m; several, as q8_0,q4_0, get a folder each [f16]");
  auto* max_ram = command->add_option_function<std::string>(
      "--max-ram", [args](const std::string& text) { args->options.max_ram = parse_bytes(text); },
      "memory to stay within, as 128MiB [slabs of half a million weights]");
  auto* adapter_type = command->add_option_function<std::string>(
      "--adapter-type",
      [args](const std::string& name) { args->options.adapter_type = dtype_from_name(name); },
      "type of the levels' adapters, where the directory has some: f32, f16 [f16]");
  add_levels_option(*command, args->options.levels, "which of the plan's levels [all]");
  auto* packed = command->add_flag("--packed", args->options.packed,
                                   "one model.gguf, which stock runtimes load as the full model; `elastify "
                                   "slice` takes levels out of it");
  auto* shared_common =
      command
          ->add_flag("--shared-common", args->options.shared_common,
                     "embedding and output once, in common.gguf: every level is a split of two files")
          ->excludes(packed);
  auto* imatrix = command->add_option(
      "--imatrix", args->imatrix,
      "profile or imatrix of the source model, as measured before reordering: K-quants are encoded "
      "by it, and one imatrix per GGUF file is written, for llama-quantize");
  auto* hf = command->add_flag(
      "--hf", args->hf,
      "a Hugging Face directory per level, for transformers, and PEFT's adapters; all layers of a "
      "level must be equally wide; --type f32, f16 or bf16 [as the model is stored]");
  for (auto* option : {packed, shared_common, max_ram, adapter_type, imatrix}) hf->excludes(option);
  command->add_option("-o,--output", args->output, "directory to write")->required();
  command->footer(
      "Example: elastify export reordered --type q8_0 -o artifact\n"
      "         elastify export reordered --type q8_0 --packed -o packed\n"
      "         elastify export reordered --hf --levels 0.7,0.5 -o transformers");
  command->callback([args, type, &globals, &action] {
    if (args->hf && type->empty()) args->options.types.clear();
    action = [args, &globals] {
      return args->hf ? run_export_hf(globals, *args) : run_export(globals, *args);
    };
  });
}

}  // namespace elastify::cli
