#include "model/repair.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "base/error.h"
#include "io/safetensors.h"
#include "model/json_fields.h"
#include "model/tensor_match.h"

// Source of the adapter's layout: peft 0.13, src/peft/utils/save_and_load.py and tuners/lora/config.py.

namespace elastify {
namespace {

using Json = nlohmann::ordered_json;
using Fields = JsonFields<Json>;

constexpr const char* kFormat = "elastify.repair";
constexpr int64_t kVersion = 1;
constexpr const char* kDescription = "repair.json";
constexpr const char* kAdapterConfig = "adapter_config.json";
constexpr const char* kAdapters = "adapter_model.safetensors";
constexpr const char* kWeights = "weights.safetensors";
constexpr const char* kPeftPrefix = "base_model.model.";

/// "model.layers.3.mlp.down_proj"
std::string module_name(const TensorSpec& matrix) {
  return matrix.name.substr(0, matrix.name.rfind('.'));
}
/// "down_proj"
std::string short_module_name(const TensorSpec& matrix) {
  const std::string module = module_name(matrix);
  return module.substr(module.rfind('.') + 1);
}
std::string peft_name(const TensorSpec& matrix, const char* half) {
  return fmt::format("{}{}.lora_{}.weight", kPeftPrefix, module_name(matrix), half);
}

void require_finite(const std::string& name, const HostTensor& tensor) {
  for (size_t i = 0; i < tensor.bytes.size() / sizeof(float); ++i) {
    float value = 0;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(float), sizeof(float));
    if (!std::isfinite(value)) fail("{}: element {}: expected a finite number, got {}", name, i, value);
  }
}

void check_tensor(const std::string& name, const HostTensor& tensor, const Shape& expected) {
  if (tensor.shape != expected)
    fail("{}: expected shape {}, got {}", name, to_string(expected), to_string(tensor.shape));
  if (tensor.dtype != DType::kF32)
    fail("{}: expected type f32 in memory, got {}", name, info(tensor.dtype).name);
  require_finite(name, tensor);
}

void check_adapter(const ConstRepairPlace& place, const Shape& matrix) {
  const MatrixRepair& repair = *place.repair;
  if (!repair.a && !repair.b) return;
  const std::string a = peft_name(*place.tensor, "A"), b = peft_name(*place.tensor, "B");
  if (!repair.a || !repair.b)
    fail("{}: half of an adapter: {} is missing", repair.a ? a : b, repair.a ? b : a);
  const int64_t rank = repair.rank();
  if (rank < 1) fail("{}: expected a rank of 1 or more, got {}", a, rank);
  check_tensor(a, *repair.a, {rank, matrix[1]});
  check_tensor(b, *repair.b, {matrix[0], rank});
}

void check_weights(const ConstRepairPlace& place, const Shape& matrix) {
  const MatrixRepair& repair = *place.repair;
  if (repair.weight) check_tensor(place.tensor->name, *repair.weight, matrix);
  if (repair.bias) check_tensor(bias_name(*place.tensor), *repair.bias, {matrix[0]});
}

const TensorSpec& output_norm(const ModelSpec& spec) {
  return spec.tensors.at(static_cast<size_t>(spec.find(Role::kOutputNorm, -1)));
}

void check_output_norm(const LevelRepairs& repairs, const ModelSpec& spec) {
  if (repairs.output_norm) check_tensor(output_norm(spec).name, *repairs.output_norm, {spec.d_model});
}

struct NamedTensor {
  std::string name;
  const HostTensor* tensor;
};

void write_tensors(const fs::path& file, const std::vector<NamedTensor>& tensors) {
  std::vector<TensorInfo> infos;
  for (const NamedTensor& each : tensors)
    infos.push_back({each.name, each.tensor->dtype, each.tensor->shape});
  SafetensorsWriter writer(file, std::move(infos), {{"format", "pt"}});
  for (const NamedTensor& each : tensors) writer.write(each.tensor->bytes);
  writer.finish();
}

/// PEFT takes a target for every module whose path ends with it, and matches the patterns in the same way:
/// the last name where all layers have such an adapter, whole paths otherwise.
std::vector<std::string> target_modules(const std::vector<ConstRepairPlace>& places) {
  std::set<std::string> partly;
  for (const ConstRepairPlace& place : places)
    if (!place.repair->a) partly.insert(short_module_name(*place.tensor));
  std::vector<std::string> targets;
  for (const ConstRepairPlace& place : places) {
    if (!place.repair->a) continue;
    const std::string last = short_module_name(*place.tensor);
    const std::string target = partly.contains(last) ? module_name(*place.tensor) : last;
    if (std::find(targets.begin(), targets.end(), target) == targets.end()) targets.push_back(target);
  }
  return targets;
}

Json adapter_config(const std::vector<ConstRepairPlace>& places, const std::string& base_model) {
  int64_t rank = 0;
  for (const ConstRepairPlace& place : places) rank = std::max(rank, place.repair->rank());
  Json ranks = Json::object();
  for (const ConstRepairPlace& place : places)
    if (place.repair->a && place.repair->rank() != rank)
      ranks[module_name(*place.tensor)] = place.repair->rank();
  Json config = {{"peft_type", "LORA"},     {"task_type", "CAUSAL_LM"},
                 {"inference_mode", true},  {"r", rank},
                 {"lora_alpha", rank},      {"rank_pattern", ranks},
                 {"alpha_pattern", ranks},  {"target_modules", target_modules(places)},
                 {"bias", "none"},          {"lora_dropout", 0.0},
                 {"fan_in_fan_out", false}, {"use_rslora", false},
                 {"use_dora", false}};
  if (!base_model.empty()) config["base_model_name_or_path"] = base_model;
  return config;
}

Json read_json(const fs::path& file) {
  const std::string text = read_text(file, uint64_t{1} << 24);
  return with_context(file.string(), [&] { return parse_json<Json>(text); });
}

/// What PEFT multiplies onto b a of each matrix: alpha / rank.
class AdapterConfig {
 public:
  explicit AdapterConfig(const Json& json) : fields_(json) {
    if (const std::string type = fields_.require_string("peft_type"); type != "LORA")
      fail("peft_type: expected \"LORA\", got \"{}\"", type);
    for (const char* key : {"use_rslora", "use_dora", "fan_in_fan_out"})
      if (fields_.boolean(key).value_or(false)) fail("{}: true is not supported", key);
    rank_ = fields_.require_integer("r");
    alpha_ = fields_.require_number("lora_alpha");
  }

  /// \throws Error  if the file of tensors has another rank
  float scale(const std::string& module, int64_t rank) const {
    const auto stated = static_cast<double>(rank_);
    const double expected = pattern("rank_pattern", module).value_or(stated);
    if (expected != static_cast<double>(rank))
      fail("rank of {}: {}, but {} holds an adapter of rank {}", module, expected, kAdapters, rank);
    return static_cast<float>(pattern("alpha_pattern", module).value_or(alpha_) / expected);
  }

 private:
  std::optional<double> pattern(const char* key, const std::string& module) const {
    const Json* patterns = fields_.find(key);
    if (patterns == nullptr) return std::nullopt;
    if (!patterns->is_object()) fail("{}: expected an object, got {}", key, Fields::shown(*patterns));
    std::optional<double> value;
    for (const auto& [name, number] : patterns->items())
      if (name == module || module.ends_with("." + name))
        value = Fields::to_number(fmt::format("{}: {}", key, name), number);
    return value;
  }

  Fields fields_;
  int64_t rank_ = 0;
  double alpha_ = 0;
};

void scale_in_place(HostTensor& tensor, float scale) {
  if (scale == 1) return;
  HostTensor scaled = HostTensor::allocate(DType::kF32, tensor.shape);
  const std::span<std::byte> target = scaled.writable();
  for (size_t i = 0; i < target.size(); i += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, tensor.bytes.data() + i, sizeof(float));
    value *= scale;
    std::memcpy(target.data() + i, &value, sizeof(float));
  }
  tensor = std::move(scaled);
}

/// Takes the tensors of a file one by one by name; what nobody takes is refused.
class Tensors {
 public:
  explicit Tensors(const fs::path& file) : file_(SafetensorsFile::open(file)) {
    for (const TensorInfo& tensor : file_.tensors()) left_.insert(tensor.name);
    for (const auto& [name, type] : file_.skipped()) left_.insert(name);
  }
  std::optional<HostTensor> take(const std::string& name) {
    if (!file_.contains(name)) return std::nullopt;
    left_.erase(name);
    return convert(file_.tensor(name), DType::kF32);
  }
  void finish() const {
    if (!left_.empty())
      fail("unexpected tensors: {}", list_some(std::vector<std::string>(left_.begin(), left_.end())));
  }

 private:
  SafetensorsFile file_;
  std::set<std::string> left_;
};

void read_adapters(const fs::path& directory, const std::vector<RepairPlace>& places) {
  const Json json = read_json(directory / kAdapterConfig);
  with_context((directory / kAdapters).string(), [&] {
    Tensors tensors(directory / kAdapters);
    for (const RepairPlace& place : places) {
      place.repair->a = tensors.take(peft_name(*place.tensor, "A"));
      place.repair->b = tensors.take(peft_name(*place.tensor, "B"));
    }
    tensors.finish();
    for (const RepairPlace& place : places)
      for (const auto& half : {place.repair->a, place.repair->b})
        if (half && half->shape.size() != 2)
          fail("{}: expected two dimensions, got shape {}", module_name(*place.tensor),
               to_string(half->shape));
  });
  with_context((directory / kAdapterConfig).string(), [&] {
    const AdapterConfig config(json);
    for (const RepairPlace& place : places)
      if (place.repair->a && place.repair->b)
        scale_in_place(*place.repair->b, config.scale(module_name(*place.tensor), place.repair->rank()));
  });
}

}  // namespace

bool LevelRepairs::has_adapters() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerRepairs& layer) {
    return layer.attention_out.a.has_value() || layer.down.a.has_value();
  });
}
bool LevelRepairs::has_biases() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerRepairs& layer) {
    return layer.attention_out.bias.has_value() || layer.down.bias.has_value();
  });
}
int64_t LevelRepairs::n_own_weights() const {
  int64_t n = 0;
  for (const LayerRepairs& layer : layers)
    n += (layer.attention_out.weight ? 1 : 0) + (layer.down.weight ? 1 : 0);
  return n;
}

std::vector<RepairPlace> repair_places(LevelRepairs& repairs, const ModelSpec& spec, const Widths& widths) {
  if (static_cast<int64_t>(repairs.layers.size()) != spec.n_layers)
    fail("repairs: expected {} layers, got {}", spec.n_layers, repairs.layers.size());
  std::vector<RepairPlace> places;
  for (const TensorSpec& tensor : spec.tensors) {
    if (tensor.role != Role::kAttnOut && tensor.role != Role::kDown) continue;
    if (n_elements(shape_at(tensor, widths)) == 0) continue;
    LayerRepairs& layer = repairs.layers[static_cast<size_t>(tensor.layer)];
    places.push_back({&tensor, tensor.role == Role::kDown ? &layer.down : &layer.attention_out});
  }
  return places;
}

std::vector<ConstRepairPlace> repair_places(const LevelRepairs& repairs, const ModelSpec& spec,
                                            const Widths& widths) {
  std::vector<ConstRepairPlace> places;
  for (const RepairPlace& place : repair_places(const_cast<LevelRepairs&>(repairs), spec, widths))
    places.push_back({place.tensor, place.repair});
  return places;
}

std::string bias_name(const TensorSpec& matrix) {
  return module_name(matrix) + ".bias";
}

fs::path repairs_directory(const fs::path& reordered, double nominal) {
  return reordered / "repairs" / level_name(nominal);
}

void check(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level) {
  for (const ConstRepairPlace& place : repair_places(repairs, spec, level.widths)) {
    const Shape matrix = shape_at(*place.tensor, level.widths);
    check_adapter(place, matrix);
    check_weights(place, matrix);
  }
  check_output_norm(repairs, spec);
}

void save_adapters(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                   const std::string& base_model, const fs::path& directory) {
  check(repairs, spec, level);
  const std::vector<ConstRepairPlace> places = repair_places(repairs, spec, level.widths);
  std::vector<NamedTensor> adapters;
  for (const ConstRepairPlace& place : places) {
    if (!place.repair->a) continue;
    adapters.push_back({peft_name(*place.tensor, "A"), &*place.repair->a});
    adapters.push_back({peft_name(*place.tensor, "B"), &*place.repair->b});
  }
  fs::create_directories(directory);
  write_text(directory / kAdapterConfig, adapter_config(places, base_model).dump(2) + "\n");
  write_tensors(directory / kAdapters, adapters);
}

LevelRepairs load_adapters(const fs::path& directory, const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs{.nominal = level.nominal, .compensation = "adapter", .layers = {}};
  repairs.layers.resize(static_cast<size_t>(spec.n_layers));
  read_adapters(directory, repair_places(repairs, spec, level.widths));
  with_context((directory / kAdapters).string(), [&] { check(repairs, spec, level); });
  return repairs;
}

void save_repairs(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                  const fs::path& directory) {
  check(repairs, spec, level);
  std::vector<NamedTensor> weights;
  for (const ConstRepairPlace& place : repair_places(repairs, spec, level.widths)) {
    if (place.repair->weight) weights.push_back({place.tensor->name, &*place.repair->weight});
    if (place.repair->bias) weights.push_back({bias_name(*place.tensor), &*place.repair->bias});
  }
  if (repairs.output_norm) weights.push_back({output_norm(spec).name, &*repairs.output_norm});
  fs::create_directories(directory);
  const Json description = {{"format", kFormat},
                            {"version", kVersion},
                            {"spec_hash", spec_hash(spec)},
                            {"level", repairs.nominal},
                            {"compensation", repairs.compensation},
                            {"adapters", repairs.has_adapters()},
                            {"weights", !weights.empty()}};
  write_text(directory / kDescription, description.dump(2) + "\n");
  if (repairs.has_adapters()) save_adapters(repairs, spec, level, "", directory);
  if (!weights.empty()) write_tensors(directory / kWeights, weights);
}

LevelRepairs load_repairs(const fs::path& directory, const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs;
  repairs.layers.resize(static_cast<size_t>(spec.n_layers));
  bool has_adapters = false, has_weights = false;
  const Json json = read_json(directory / kDescription);
  with_context((directory / kDescription).string(), [&] {
    const Fields fields(json);
    if (const std::string format = fields.require_string("format"); format != kFormat)
      fail("format: expected \"{}\", got \"{}\"", kFormat, format);
    if (const int64_t version = fields.require_integer("version"); version != kVersion)
      fail("version: {} is not supported; supported is {}", version, kVersion);
    if (const std::string hash = fields.require_string("spec_hash"); hash != spec_hash(spec))
      throw Error(
          fmt::format("spec_hash: expected {}, got {}", spec_hash(spec).substr(0, 12), hash.substr(0, 12)),
          "these are repairs of another model; make them with `elastify reorder --compensate`");
    repairs.nominal = fields.require_number("level");
    if (std::abs(repairs.nominal - level.nominal) > 1e-6)
      fail("level: expected {}, got {}", level.nominal, repairs.nominal);
    repairs.compensation = fields.require_string("compensation");
    has_adapters = fields.boolean("adapters").value_or(false);
    has_weights = fields.boolean("weights").value_or(false);
  });
  const std::vector<RepairPlace> places = repair_places(repairs, spec, level.widths);
  if (has_adapters) read_adapters(directory, places);
  if (has_weights)
    with_context((directory / kWeights).string(), [&] {
      Tensors tensors(directory / kWeights);
      for (const RepairPlace& place : places) {
        place.repair->weight = tensors.take(place.tensor->name);
        place.repair->bias = tensors.take(bias_name(*place.tensor));
      }
      repairs.output_norm = tensors.take(output_norm(spec).name);
      tensors.finish();
    });
  // Each file's findings name the file.
  const auto check_file = [&](const char* file, auto&& check_part) {
    with_context((directory / file).string(), [&] {
      for (const RepairPlace& place : places)
        check_part(ConstRepairPlace{place.tensor, place.repair}, shape_at(*place.tensor, level.widths));
    });
  };
  check_file(kAdapters, check_adapter);
  check_file(kWeights, check_weights);
  with_context((directory / kWeights).string(), [&] { check_output_norm(repairs, spec); });
  return repairs;
}

std::optional<LevelRepairs> find_repairs(const fs::path& reordered, const ModelSpec& spec,
                                         const Level& level) {
  const fs::path directory = repairs_directory(reordered, level.nominal);
  if (level.nominal >= 1 || !fs::exists(directory)) return std::nullopt;
  return load_repairs(directory, spec, level);
}

}  // namespace elastify
