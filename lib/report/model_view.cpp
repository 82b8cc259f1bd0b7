#include "report/model_view.h"

#include <fmt/ranges.h>

#include <map>
#include <string>
#include <vector>

namespace elastify::report {
namespace {

using nlohmann::ordered_json;

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

/// How many tensors have each stored type.
std::map<std::string, int> stored_types(const Checkpoint& checkpoint) {
  std::map<std::string, int> stored;
  for (size_t i = 0; i < checkpoint.spec().tensors.size(); ++i)
    ++stored[std::string(info(checkpoint.stored_dtype(i)).name)];
  return stored;
}

ordered_json spaces_json(const ModelSpec& spec) {
  ordered_json spaces = ordered_json::array();
  for (size_t i = 0; i < spec.spaces.size(); ++i)
    spaces.push_back({{"name", spec.spaces[i].name},
                      {"n_units", spec.spaces[i].n_units},
                      {"params_per_unit", params_per_unit(spec, i)}});
  return spaces;
}

ordered_json model_json(const Checkpoint& checkpoint, const fs::path& path) {
  const ModelSpec& spec = checkpoint.spec();
  ordered_json json{{"path", path.string()},
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
  json["stored_types"] = stored_types(checkpoint);
  if (!spec.is_uniform()) {
    json["layer_kv_heads"] = spec.layer_kv_heads;
    json["layer_d_ff"] = spec.layer_d_ff;
  }
  json["spaces"] = spaces_json(spec);
  json["levels"] = ordered_json::array();
  return json;
}

std::string model_text(const Checkpoint& checkpoint, const fs::path& path) {
  const ModelSpec& spec = checkpoint.spec();
  std::vector<std::string> left_out;
  for (const AxisSpace& space : spec.spaces)
    if (space.n_units == 0) left_out.push_back(space.name);

  std::string text = fmt::format("{}: {} decoder, {} layers, {} parameters ({} in decoder layers)\n",
                                 path.string(), spec.family, spec.n_layers, n_params(spec, full_widths(spec)),
                                 n_decoder_params(spec, full_widths(spec)));
  text += fmt::format(
      "  model width {}, MLP width {}, {} heads of {} in {} KV groups, vocabulary {} ({}), context {}\n",
      spec.d_model, spec.d_ff(), spec.n_heads(), spec.head_dim, spec.n_kv_heads(), spec.n_vocab,
      spec.tied ? "tied" : "untied", spec.max_seq);
  const ordered_json params = params_by_part(spec);
  for (const auto& [part, count] : params.items())
    text += fmt::format("  {:<10} {:>14}\n", part, count.get<int64_t>());
  std::vector<std::string> types;
  for (const auto& [type, count] : stored_types(checkpoint))
    types.push_back(fmt::format("{} x{}", type, count));
  text += fmt::format("  stored as  {}\n", fmt::join(types, ", "));
  if (!left_out.empty()) text += fmt::format("  left out   {}\n", fmt::join(left_out, ", "));

  text += fmt::format(
      "  spaces     {} attention spaces of {} KV groups, {} parameters each; {} MLP spaces of {} neurons, {} "
      "each\n",
      spec.n_layers, spec.n_kv_heads(), params_per_unit(spec, spec.attention_space(0)), spec.n_layers,
      spec.d_ff(), params_per_unit(spec, spec.mlp_space(0)));
  return text;
}

}  // namespace

Report view_model(const Checkpoint& checkpoint, const fs::path& path) {
  return {.json = model_json(checkpoint, path), .text = model_text(checkpoint, path)};
}

}  // namespace elastify::report
