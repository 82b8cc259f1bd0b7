#include "export/options.h"

#include "base/error.h"
#include "model/levels.h"
#include "options/option.h"

namespace elastify::exporter {
namespace {

DType adapter_type_named(const std::string& name) {
  const DType type = dtype_from_name(name);
  if (type != DType::kF32 && type != DType::kF16)
    throw UsageError(fmt::format("adapters cannot be stored as {}", name), "one of f32, f16");
  return type;
}

}  // namespace

void declare(options::Options& options, ExportOptions& fields) {
  options.add("type", fields.types,
              "type of the matrices: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, or a "
              "mixture: q4_k_m, q5_k_m; several, as q8_0,q4_0, get a folder each",
              options::text_codec<std::vector<WeightType>>(
                  "TYPE,...", [](const std::string& names) { return weight_types_named(names); }, to_text));
  options.add("levels", fields.levels, "some of the plan's levels [all]", levels_codec());
  options.add("adapter_type", fields.adapter_type,
              "type of the levels' adapters, where the directory has some: f32, f16",
              options::text_codec<DType>("TYPE", adapter_type_named,
                                         [](const DType& type) { return std::string(info(type).name); }));
  options.add(
      "packed", fields.packed,
      "one model.gguf, which stock runtimes load as the full model; `elastify slice` takes levels out "
      "of it");
  options.add("shared_common", fields.shared_common,
              "embedding and output once, in common.gguf: every level is a split of two files");
  options.add(
      "imatrix", fields.imatrix,
      "profile or imatrix of the source model, as measured before reordering: K-quants are encoded by "
      "it, and one imatrix per GGUF file is written, for llama-quantize");
}

nlohmann::ordered_json to_json(const ExportOptions& options) {
  ExportOptions copy = options;
  options::Options list;
  declare(list, copy);
  return list.json();
}

}  // namespace elastify::exporter
