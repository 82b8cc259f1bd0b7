#include "model/repair.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <regex>
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

struct MatrixRoles {
  Role matrix, bias;
};
constexpr MatrixRoles kMatrices[] = {{Role::kQuery, Role::kQueryBias}, {Role::kKey, Role::kKeyBias},
                                     {Role::kValue, Role::kValueBias}, {Role::kAttnOut, Role::kAttnOutBias},
                                     {Role::kGate, Role::kGateBias},   {Role::kUp, Role::kUpBias},
                                     {Role::kDown, Role::kDownBias}};

bool is_norm(Role role) {
  return role == Role::kAttnNorm || role == Role::kFfnNorm;
}

/// \param shape  of the tensor at the level's widths
void check_adapter(const TensorSpec& tensor, const TensorRepair& repair, const Shape& shape) {
  if (!repair.a && !repair.b) return;
  const std::string a = peft_name(tensor, "A"), b = peft_name(tensor, "B");
  if (!repair.a || !repair.b)
    fail("{}: incomplete adapter: {} is missing", repair.a ? a : b, repair.a ? b : a);
  if (repair.a->shape.size() != 2)
    fail("{}: expected two dimensions, got shape {}", a, to_string(repair.a->shape));
  const int64_t rank = repair.rank();
  if (rank < 1) fail("{}: expected a rank of 1 or more, got {}", a, rank);
  check_tensor(a, *repair.a, {rank, shape[1]});
  check_tensor(b, *repair.b, {shape[0], rank});
}

/// \param shape  of the tensor at the level's widths
void check_weights(const TensorSpec& tensor, const TensorRepair& repair, const Shape& shape) {
  if (repair.weight) check_tensor(tensor.name, *repair.weight, shape);
  if (repair.bias) check_tensor(bias_name(tensor), *repair.bias, {shape[0]});
}

/// \throws Error  if a repair belongs to a tensor that the level does not have
void check_places(const LevelRepairs& repairs, const ModelSpec& spec, const Widths& widths) {
  if (static_cast<int64_t>(repairs.layers.size()) != spec.n_layers)
    fail("repairs: expected {} layers, got {}", spec.n_layers, repairs.layers.size());
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    for (const auto& [role, repair] : repairs.layers[static_cast<size_t>(layer)]) {
      if (repair.is_empty()) continue;
      const int64_t index = spec.find(role, layer);
      if (index < 0 || !(is_layer_matrix(role) || is_norm(role)))
        fail("layers.{}: only matrices and norms can be repaired, not role {}", layer,
             static_cast<int>(role));
      const TensorSpec& tensor = spec.tensors[static_cast<size_t>(index)];
      if (!is_kept(spec, tensor, widths))
        fail("{}: the level leaves out this tensor, but has a repair for it", tensor.name);
      if (is_norm(role) && (repair.a || repair.b || repair.bias))
        fail("{}: a norm has neither an adapter nor a bias, only weights", tensor.name);
    }
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

/// A matrix that has an adapter.
struct Adapter {
  const TensorSpec* matrix;
  const TensorRepair* repair;
};

std::vector<Adapter> adapters_of(const LevelRepairs& repairs, const ModelSpec& spec, const Widths& widths) {
  std::vector<Adapter> adapters;
  for (const TensorSpec* tensor : repairable_tensors(spec, widths))
    if (const TensorRepair* repair = repairs.find(*tensor); repair != nullptr && repair->a)
      adapters.push_back({tensor, repair});
  return adapters;
}

/// Target modules for PEFT, which applies a target to every module whose path ends with it. A target is the
/// last part of the path if all layers have such an adapter, else the whole path. PEFT matches its patterns
/// in the same way.
std::vector<std::string> target_modules(const std::vector<Adapter>& adapters, const ModelSpec& spec,
                                        const Widths& widths) {
  std::set<const TensorSpec*> adapted;
  for (const Adapter& adapter : adapters) adapted.insert(adapter.matrix);
  std::set<std::string> partly;
  for (const TensorSpec* tensor : repairable_tensors(spec, widths))
    if (!adapted.contains(tensor)) partly.insert(short_module_name(*tensor));
  std::vector<std::string> targets;
  for (const Adapter& adapter : adapters) {
    const std::string last = short_module_name(*adapter.matrix);
    const std::string target = partly.contains(last) ? module_name(*adapter.matrix) : last;
    if (std::find(targets.begin(), targets.end(), target) == targets.end()) targets.push_back(target);
  }
  return targets;
}

Json adapter_config(const std::vector<Adapter>& adapters, std::vector<std::string> targets,
                    const std::string& base_model) {
  int64_t rank = 0;
  for (const Adapter& adapter : adapters) rank = std::max(rank, adapter.repair->rank());
  Json ranks = Json::object();
  for (const Adapter& adapter : adapters)
    if (adapter.repair->rank() != rank) ranks[module_name(*adapter.matrix)] = adapter.repair->rank();
  Json config = {{"peft_type", "LORA"},     {"task_type", "CAUSAL_LM"},
                 {"inference_mode", true},  {"r", rank},
                 {"lora_alpha", rank},      {"rank_pattern", ranks},
                 {"alpha_pattern", ranks},  {"target_modules", std::move(targets)},
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

/// Whether a key of PEFT's patterns matches the module. The key is a regular expression for the end of the
/// module's path.
/// \param where  for errors
bool matches(const std::string& key, const std::string& module, const char* where) {
  const bool is_plain = key.find_first_of("\\^$*+?()[]{}|") == std::string::npos;
  if (is_plain) return key == module || module.ends_with("." + key);
  try {
    return std::regex_match(module, std::regex(fmt::format("(.*\\.)?({})", key)));
  } catch (const std::regex_error& error) {
    fail("{}: {}: not a regular expression: {}", where, key, error.what());
  }
}

/// Reads from PEFT's configuration the scale alpha / rank of each matrix, by which PEFT multiplies b a.
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
    for (const auto& [name, number] : patterns->items())  // PEFT uses the first match
      if (matches(name, module, key)) return Fields::to_number(fmt::format("{}: {}", key, name), number);
    return std::nullopt;
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

/// Reads the tensors of a file by name, and refuses those that are left over.
class Tensors {
 public:
  explicit Tensors(const fs::path& file) : file_(SafetensorsFile::open(file)) {
    for (const TensorInfo& tensor : file_.tensors()) left_.insert(tensor.name);
    for (const auto& [name, type] : file_.skipped()) left_.insert(name);
  }
  /// \throws Error  if the tensor has a type that is not supported
  std::optional<HostTensor> take(const std::string& name) {
    if (const auto other = file_.skipped().find(name); other != file_.skipped().end())
      throw Error(fmt::format("{}: type {} is not supported", name, other->second),
                  "expected F32, F16 or BF16");
    if (!file_.contains(name)) return std::nullopt;
    left_.erase(name);
    return convert(file_.tensor(name), DType::kF32);
  }
  /// \throws Error  if tensors are left
  /// \param hint  states the expected tensors
  void finish(const std::string& hint) const {
    if (!left_.empty())
      throw Error(fmt::format("unexpected tensors: {}",
                              list_some(std::vector<std::string>(left_.begin(), left_.end()))),
                  hint);
  }

 private:
  SafetensorsFile file_;
  std::set<std::string> left_;
};

/// "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
std::string known_modules(const ModelSpec& spec) {
  std::string names;
  for (const TensorSpec& tensor : spec.tensors)
    if (tensor.layer == 0 && is_layer_matrix(tensor.role))
      names += (names.empty() ? "" : ", ") + short_module_name(tensor);
  return names;
}

void read_adapters(const fs::path& directory, const ModelSpec& spec, const Widths& widths,
                   LevelRepairs& repairs) {
  const Json json = read_json(directory / kAdapterConfig);
  std::vector<std::pair<const TensorSpec*, TensorRepair*>> read;
  with_context((directory / kAdapters).string(), [&] {
    Tensors tensors(directory / kAdapters);
    for (const TensorSpec* tensor : repairable_tensors(spec, widths)) {
      if (!is_layer_matrix(tensor->role)) continue;
      auto a = tensors.take(peft_name(*tensor, "A")), b = tensors.take(peft_name(*tensor, "B"));
      if (!a && !b) continue;
      TensorRepair& repair = repairs.at(*tensor);
      repair.a = std::move(a);
      repair.b = std::move(b);
      check_adapter(*tensor, repair, shape_at(*tensor, widths));
      read.emplace_back(tensor, &repair);
    }
    tensors.finish(
        fmt::format("adapters may be of {} in the layers that the level keeps", known_modules(spec)));
  });
  with_context((directory / kAdapterConfig).string(), [&] {
    const AdapterConfig config(json);
    for (const auto& [tensor, repair] : read)
      scale_in_place(*repair->b, config.scale(module_name(*tensor), repair->rank()));
  });
}

void read_weights(const fs::path& directory, const ModelSpec& spec, const Widths& widths,
                  LevelRepairs& repairs) {
  with_context((directory / kWeights).string(), [&] {
    Tensors tensors(directory / kWeights);
    for (const TensorSpec* tensor : repairable_tensors(spec, widths)) {
      auto weight = tensors.take(tensor->name);
      auto bias = is_norm(tensor->role) ? std::nullopt : tensors.take(bias_name(*tensor));
      if (!weight && !bias) continue;
      TensorRepair& repair = repairs.at(*tensor);
      repair.weight = std::move(weight);
      repair.bias = std::move(bias);
      check_weights(*tensor, repair, shape_at(*tensor, widths));
    }
    repairs.output_norm = tensors.take(output_norm(spec).name);
    check_output_norm(repairs, spec);
    tensors.finish(
        "weights and biases may be of the matrices that the level keeps, weights of its norms, too");
  });
}

}  // namespace

const TensorRepair* LevelRepairs::find(int64_t layer, Role role) const {
  if (layer < 0) return nullptr;
  const LayerRepairs& repairs = layers.at(static_cast<size_t>(layer));
  const auto found = repairs.find(role);
  return found == repairs.end() || found->second.is_empty() ? nullptr : &found->second;
}

Compensation LevelRepairs::parts() const {
  auto parts = output_norm ? Compensation::kNorm : Compensation::kNone;
  for (const LayerRepairs& layer : layers)
    for (const auto& [role, repair] : layer) {
      if (repair.a) parts |= Compensation::kAdapter;
      if (repair.bias) parts |= Compensation::kBias;
      if (repair.weight) parts |= is_norm(role) ? Compensation::kNorm : Compensation::kBaked;
    }
  return parts;
}

LevelRepairs empty_repairs(const ModelSpec& spec, double nominal, Compensation compensation) {
  return {.nominal = nominal,
          .compensation = compensation,
          .layers = std::vector<LayerRepairs>(static_cast<size_t>(spec.n_layers))};
}

bool is_layer_matrix(Role role) {
  return std::any_of(std::begin(kMatrices), std::end(kMatrices),
                     [&](const MatrixRoles& each) { return each.matrix == role; });
}

Role bias_of(Role matrix) {
  for (const MatrixRoles& each : kMatrices)
    if (each.matrix == matrix) return each.bias;
  fail("role {} is no matrix of a layer", static_cast<int>(matrix));
}

std::optional<Role> matrix_of(Role bias) {
  for (const MatrixRoles& each : kMatrices)
    if (each.bias == bias) return each.matrix;
  return std::nullopt;
}

std::vector<const TensorSpec*> repairable_tensors(const ModelSpec& spec, const Widths& widths) {
  std::vector<const TensorSpec*> tensors;
  for (const TensorSpec& tensor : spec.tensors)
    if ((is_layer_matrix(tensor.role) || is_norm(tensor.role)) && is_kept(spec, tensor, widths))
      tensors.push_back(&tensor);
  return tensors;
}

std::string bias_name(const TensorSpec& matrix) {
  return module_name(matrix) + ".bias";
}

fs::path repairs_directory(const fs::path& reordered, double nominal) {
  return reordered / "repairs" / level_name(nominal);
}

void check(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level) {
  check_places(repairs, spec, level.widths);
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths))
    if (const TensorRepair* repair = repairs.find(*tensor)) {
      const Shape shape = shape_at(*tensor, level.widths);
      check_adapter(*tensor, *repair, shape);
      check_weights(*tensor, *repair, shape);
    }
  check_output_norm(repairs, spec);
}

void save_adapters(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                   const std::string& base_model, const fs::path& directory) {
  check(repairs, spec, level);
  const std::vector<Adapter> adapters = adapters_of(repairs, spec, level.widths);
  std::vector<NamedTensor> tensors;
  for (const auto& [matrix, repair] : adapters) {
    tensors.push_back({peft_name(*matrix, "A"), &*repair->a});
    tensors.push_back({peft_name(*matrix, "B"), &*repair->b});
  }
  fs::create_directories(directory);
  const Json config = adapter_config(adapters, target_modules(adapters, spec, level.widths), base_model);
  write_text(directory / kAdapterConfig, config.dump(2) + "\n");
  write_tensors(directory / kAdapters, tensors);
}

LevelRepairs load_adapters(const fs::path& directory, const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs = empty_repairs(spec, level.nominal, Compensation::kAdapter);
  read_adapters(directory, spec, level.widths, repairs);
  return repairs;
}

void save_repairs(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                  const fs::path& directory) {
  check(repairs, spec, level);
  std::vector<NamedTensor> weights;
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths))
    if (const TensorRepair* repair = repairs.find(*tensor)) {
      if (repair->weight) weights.push_back({tensor->name, &*repair->weight});
      if (repair->bias) weights.push_back({bias_name(*tensor), &*repair->bias});
    }
  if (repairs.output_norm) weights.push_back({output_norm(spec).name, &*repairs.output_norm});
  const bool has_adapters = has(repairs.parts(), Compensation::kAdapter);
  fs::create_directories(directory);
  const Json description = {{"format", kFormat},
                            {"version", kVersion},
                            {"spec_hash", spec_hash(spec)},
                            {"level", repairs.nominal},
                            {"compensation", name_of(repairs.compensation)},
                            {"adapters", has_adapters},
                            {"weights", !weights.empty()}};
  write_text(directory / kDescription, description.dump(2) + "\n");
  if (has_adapters) save_adapters(repairs, spec, level, "", directory);
  if (!weights.empty()) write_tensors(directory / kWeights, weights);
}

LevelRepairs load_repairs(const fs::path& directory, const ModelSpec& spec, const Level& level) {
  if (!fs::exists(directory / kDescription) && fs::exists(directory / kAdapterConfig))
    return load_adapters(directory, spec, level);
  LevelRepairs repairs = empty_repairs(spec, level.nominal);
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
    repairs.compensation =
        with_context("compensation", [&] { return parts_named(fields.require_string("compensation")); });
    has_adapters = fields.boolean("adapters").value_or(false);
    has_weights = fields.boolean("weights").value_or(false);
  });
  if (has_adapters) read_adapters(directory, spec, level.widths, repairs);
  if (has_weights) read_weights(directory, spec, level.widths, repairs);
  return repairs;
}

std::optional<LevelRepairs> find_repairs(const fs::path& reordered, const ModelSpec& spec,
                                         const Level& level) {
  const fs::path directory = repairs_directory(reordered, level.nominal);
  if (level.nominal >= 1 || !fs::exists(directory)) return std::nullopt;
  return load_repairs(directory, spec, level);
}

}  // namespace elastify
