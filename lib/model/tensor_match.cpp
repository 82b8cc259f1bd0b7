#include "model/tensor_match.h"

#include <algorithm>
#include <map>

#include <fmt/ranges.h>

#include "base/error.h"

namespace elastify {
namespace {

bool any_contains(const std::vector<std::string>& names, std::string_view part) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return name.find(part) != std::string::npos; });
}

std::string hint_for(const std::vector<std::string>& missing, const std::vector<std::string>& unexpected) {
  if (any_contains(unexpected, "lora_")) return "merge the LoRA adapter into the model first";
  if (any_contains(unexpected, "expert") || any_contains(unexpected, "_exps"))
    return "mixture-of-experts models are not supported";
  if (any_contains(unexpected, "weight_scale") || any_contains(unexpected, "qweight") ||
      any_contains(unexpected, ".absmax") || any_contains(unexpected, "SCB"))
    return "quantised safetensors are not supported; use the float model";
  if (missing.size() == 1 && missing[0] == "lm_head.weight")
    return "if the output shares the embedding's weights, set \"tie_word_embeddings\": true in config.json";
  if (std::find(unexpected.begin(), unexpected.end(), "embed_tokens.weight") != unexpected.end())
    return "saved from the bare decoder; save the model for causal language modelling instead";
  return {};
}

}  // namespace

std::string list_some(const std::vector<std::string>& items, size_t most) {
  if (items.size() <= most + 1) return fmt::format("{}", fmt::join(items, ", "));
  return fmt::format("{} and {} more",
                     fmt::join(items.begin(), items.begin() + static_cast<long>(most), ", "),
                     items.size() - most);
}

void require_match(const std::vector<TensorInfo>& expected, const std::vector<TensorInfo>& found,
                   const std::function<bool(const std::string& name)>& ignorable) {
  std::map<std::string_view, const TensorInfo*> by_name;
  for (const TensorInfo& tensor : found) by_name.emplace(tensor.name, &tensor);

  std::vector<std::string> missing, reshaped, unexpected;
  for (const TensorInfo& tensor : expected) {
    const auto place = by_name.find(tensor.name);
    if (place == by_name.end()) {
      missing.push_back(tensor.name);
      continue;
    }
    const Shape& shape = place->second->shape;
    if (shape != tensor.shape)
      reshaped.push_back(fmt::format("{}: expected shape {}, got {}", tensor.name, to_string(tensor.shape),
                                     to_string(shape)));
    by_name.erase(place);
  }
  for (const TensorInfo& tensor : found) {
    if (by_name.contains(tensor.name) && !ignorable(tensor.name)) unexpected.push_back(tensor.name);
  }

  std::vector<std::string> problems;
  if (!missing.empty()) problems.push_back("missing tensors: " + list_some(missing));
  if (!reshaped.empty()) problems.push_back(list_some(reshaped));
  if (!unexpected.empty()) problems.push_back("unexpected tensors: " + list_some(unexpected));
  if (!problems.empty())
    throw Error(fmt::format("{}", fmt::join(problems, "; ")), hint_for(missing, unexpected));
}

}  // namespace elastify
