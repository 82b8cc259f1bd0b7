#include "export/weight_type.h"

#include <algorithm>

#include "base/error.h"

namespace elastify::exporter {
namespace {

bool has_more_bits(int64_t layer, int64_t n_layers) {
  const int64_t eighth = n_layers / 8;
  return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

}  // namespace

const std::vector<WeightType>& all_weight_types() {
  // A file of one K-quant throughout has the file type of the small mixture, as llama-quantize --pure writes
  // it.
  static const std::vector<WeightType> types = {
      {"f32", DType::kF32, DType::kF32, 0},       {"f16", DType::kF16, DType::kF16, 1},
      {"bf16", DType::kBF16, DType::kBF16, 32},   {"q4_0", DType::kQ4_0, DType::kQ4_0, 2},
      {"q4_1", DType::kQ4_1, DType::kQ4_1, 3},    {"q5_0", DType::kQ5_0, DType::kQ5_0, 8},
      {"q5_1", DType::kQ5_1, DType::kQ5_1, 9},    {"q8_0", DType::kQ8_0, DType::kQ8_0, 7},
      {"q4_k", DType::kQ4_K, DType::kQ4_K, 14},   {"q5_k", DType::kQ5_K, DType::kQ5_K, 16},
      {"q6_k", DType::kQ6_K, DType::kQ6_K, 18},   {"q4_k_m", DType::kQ4_K, DType::kQ6_K, 15},
      {"q5_k_m", DType::kQ5_K, DType::kQ6_K, 17},
  };
  return types;
}

WeightType::WeightType(DType dtype) : WeightType(weight_type_named(info(dtype).name)) {}

DType WeightType::of(const TensorSpec& tensor, const ModelSpec& model, bool fused_qkv) const {
  if (tensor.shape.size() < 2) return DType::kF32;
  switch (tensor.role) {
    case Role::kOutput:
      return more_;
    case Role::kTokenEmbedding:
      return model.tied ? more_ : base_;
    case Role::kValue:
      return !fused_qkv && has_more_bits(tensor.layer, model.n_layers) ? more_ : base_;
    case Role::kDown:
      return has_more_bits(tensor.layer, model.n_layers) ? more_ : base_;
    default:
      return base_;
  }
}

WeightType weight_type_named(std::string_view name) {
  std::string known;
  for (const WeightType& type : all_weight_types()) {
    if (type.name() == name) return type;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", type.name());
  }
  throw UsageError(fmt::format("unknown type '{}'", name), "known are " + known);
}

std::vector<WeightType> weight_types_named(std::string_view names) {
  std::vector<WeightType> types;
  for (;;) {
    const size_t comma = names.find(',');
    types.push_back(weight_type_named(names.substr(0, comma)));
    if (std::find(types.begin(), types.end() - 1, types.back()) != types.end() - 1)
      throw UsageError(fmt::format("type '{}' is listed twice", types.back().name()));
    if (comma == std::string_view::npos) return types;
    names.remove_prefix(comma + 1);
  }
}

std::string to_text(const std::vector<WeightType>& types) {
  std::string text;
  for (const WeightType& type : types) text += fmt::format("{}{}", text.empty() ? "" : ",", type.name());
  return text;
}

}  // namespace elastify::exporter
