#include "export/lora_gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "base/error.h"
#include "export/levels.h"
#include "model/tensor_match.h"

// Source: llama.cpp, src/llama-adapter.cpp. The type of adapter.lora.alpha is part of the format: a whole
// number there ends the process.

namespace elastify::exporter {
namespace {

HostTensor scaled(const HostTensor& tensor, float scale) {
  if (scale == 1) return tensor;
  HostTensor result = HostTensor::allocate(DType::kF32, tensor.shape);
  const std::span<std::byte> target = result.writable();
  for (size_t i = 0; i < target.size(); i += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, tensor.bytes.data() + i, sizeof(float));
    value *= scale;
    std::memcpy(target.data() + i, &value, sizeof(float));
  }
  return result;
}

HostTensor encoded(const std::string& name, const HostTensor& tensor, DType type) {
  HostTensor result = convert(tensor, type);
  if (type != DType::kF16) return result;
  for (size_t i = 0; i < result.bytes.size(); i += sizeof(uint16_t)) {
    uint16_t bits = 0;
    std::memcpy(&bits, result.bytes.data() + i, sizeof(bits));
    if ((bits & 0x7c00) == 0x7c00)
      throw Error(fmt::format("{}: element {} is beyond the largest f16, 65504", name, i / sizeof(bits)),
                  "--adapter-type f32");
  }
  return result;
}

std::optional<HostTensor> half_of(const GgufFile& file, const std::string& name,
                                  std::set<std::string>& left) {
  if (!file.contains(name)) return std::nullopt;
  left.erase(name);
  HostTensor tensor = convert(file.tensor(name), DType::kF32);
  if (tensor.shape.size() != 2)
    fail("{}: expected two dimensions, got shape {}", name, to_string(tensor.shape));
  return tensor;
}

void require_key(const GgufMetadata& keys, const char* key, std::string_view expected) {
  if (const std::string found = keys.require_string(key); found != expected)
    fail("{}: expected \"{}\", got \"{}\"", key, expected, found);
}

}  // namespace

std::string lora_name(double nominal) {
  return "lora" + level_suffix(nominal) + ".gguf";
}

float lora_alpha(const LevelRepairs& repairs) {
  int64_t rank = 0;
  for (const LayerRepairs& layer : repairs.layers)
    rank = std::max({rank, layer.attention_out.rank(), layer.down.rank()});
  return static_cast<float>(rank);
}

int64_t n_lora_params(const LevelRepairs& repairs) {
  int64_t n = 0;
  for (const LayerRepairs& layer : repairs.layers)
    for (const MatrixRepair* repair : {&layer.attention_out, &layer.down})
      if (repair->a) n += n_elements(repair->a->shape) + n_elements(repair->b->shape);
  return n;
}

std::string write_lora(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                       std::string_view architecture, const GgufMetadata& keys, DType type,
                       const fs::path& path) {
  const float alpha = lora_alpha(repairs);
  std::vector<TensorInfo> infos;
  std::vector<HostTensor> tensors;
  const auto add = [&](std::string name, const HostTensor& tensor) {
    tensors.push_back(encoded(name, tensor, type));
    infos.push_back({std::move(name), type, tensor.shape});
  };
  for (const ConstRepairPlace& place : repair_places(repairs, spec, level.widths)) {
    if (!place.repair->a) continue;
    add(place.tensor->gguf_name + ".lora_a", *place.repair->a);
    add(place.tensor->gguf_name + ".lora_b",
        scaled(*place.repair->b, static_cast<float>(place.repair->rank()) / alpha));
  }
  GgufMetadata all;
  all.set("general.type", std::string("adapter"));
  all.set("general.architecture", std::string(architecture));
  all.set("adapter.type", std::string("lora"));
  all.set("adapter.lora.alpha", alpha);
  for (const auto& [key, value] : keys.entries()) all.set(key, value);
  GgufWriter writer(path, all, std::move(infos));
  for (const HostTensor& tensor : tensors) writer.write(tensor.bytes);
  return writer.finish();
}

LevelRepairs read_lora(const fs::path& path, const ModelSpec& model, std::string_view architecture,
                       double nominal) {
  return with_context(path.string(), [&] {
    const GgufFile file = GgufFile::open(path);
    const GgufMetadata& keys = file.metadata();
    require_key(keys, "general.type", "adapter");
    require_key(keys, "adapter.type", "lora");
    require_key(keys, "general.architecture", architecture);
    const double alpha = keys.number("adapter.lora.alpha").value_or(0);
    std::set<std::string> left;
    for (const TensorInfo& tensor : file.tensors()) left.insert(tensor.name);
    LevelRepairs repairs{.nominal = nominal, .compensation = "adapter", .layers = {}};
    repairs.layers.resize(static_cast<size_t>(model.n_layers));
    for (const RepairPlace& place : repair_places(repairs, model, full_widths(model))) {
      MatrixRepair& repair = *place.repair;
      const std::string a = place.tensor->gguf_name + ".lora_a", b = place.tensor->gguf_name + ".lora_b";
      repair.a = half_of(file, a, left);
      repair.b = half_of(file, b, left);
      if (repair.a.has_value() != repair.b.has_value())
        fail("{}: half of an adapter: {} is missing", repair.a ? a : b, repair.a ? b : a);
      if (repair.a && alpha != 0)
        repair.b = scaled(*repair.b, static_cast<float>(alpha / static_cast<double>(repair.rank())));
    }
    if (!left.empty())
      fail("unexpected tensors: {}", list_some(std::vector<std::string>(left.begin(), left.end())));
    check(repairs, model, make_level(model, nominal, full_widths(model)));
    return repairs;
  });
}

}  // namespace elastify::exporter
