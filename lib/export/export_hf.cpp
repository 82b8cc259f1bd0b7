#include "export/export_hf.h"

#include <fmt/ranges.h>
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/hash.h"
#include "base/progress.h"
#include "base/version.h"
#include "data/companions.h"
#include "export/level_repairs.h"
#include "export/levels.h"
#include "export/lora_gguf.h"
#include "model/families/families.h"
#include "model/manifest.h"

namespace elastify::exporter {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";
constexpr int64_t kSlabElements = int64_t{1} << 20;

int64_t n_adapter_params(const LevelRepairs& repairs) {
  int64_t n = 0;
  for (const LayerRepairs& layer : repairs.layers)
    for (const auto& [role, repair] : layer)
      if (repair.a) n += n_elements(repair.a->shape) + n_elements(repair.b->shape);
  return n;
}

/// The directory of one level while it is written.
class LevelDirectory {
 public:
  LevelDirectory(Level level, ModelSpec model, const LevelRepairs* repairs, DType type)
      : level_(std::move(level)), model_(std::move(model)), repairs_(repairs), type_(type) {
    listed_.name = level_stem(level_.nominal);
    listed_.nominal = level_.nominal;
    listed_.n_params = n_params(model_, full_widths(model_));
    listed_.decoder_ratio = level_.decoder_ratio;
    listed_.total_ratio = level_.total_ratio;
    listed_.architecture = family_named(model_.family).hf_architecture;
    if (repairs_ != nullptr) listed_.compensation = name_of(repairs_->compensation);
  }

  /// Writes everything but the weights, and opens the weights' files.
  void open(const Checkpoint& source, const Permutation& permutation, uint64_t shard_bytes,
            const fs::path& artifact) {
    path_ = artifact / listed_.name;
    fs::create_directory(path_);
    put(kConfig, hf_config_json(model_, type_, read_text(source.path() / kConfig)));
    const Companions companions = find_companions(source.path());
    listed_.has_tokenizer = companions.has_tokenizer;
    for (const auto* names : {&companions.model, &companions.tokenizer})
      for (const std::string& name : *names) put(name, read_text(source.path() / name));
    if (repairs_ != nullptr && has(repairs_->parts(), Compensation::kAdapter))
      write_adapter(source.spec(), artifact);

    std::map<std::string, std::string> about = {{"format", "pt"},
                                                {"elastify.version", std::string(kVersion)},
                                                {"elastify.level", fmt::format("{}", level_.nominal)},
                                                {"elastify.spec_hash", spec_hash(source.spec())},
                                                {"elastify.permutation_digest", digest(permutation)}};
    if (repairs_ != nullptr) state_repairs(about);
    std::vector<TensorInfo> tensors;
    for (const TensorSpec& tensor : model_.tensors) tensors.push_back({tensor.name, type_, tensor.shape});
    weights_ = std::make_unique<ShardedSafetensorsWriter>(path_, tensors, std::move(about), shard_bytes);
  }

  /// Writes the part of these rows that the level keeps.
  /// \param rows  in the directory's type
  /// \param first  index of the first of these rows in the tensor
  void write(const TensorSpec& tensor, const HostTensor& rows, int64_t first) {
    if (first == 0) {
      write_added_before(tensor.name);
      ++next_;
    }
    if (repairs_ != nullptr && is_replaced(tensor, *repairs_)) {
      if (first > 0) return;
      const bool is_vector = tensor.shape.size() < 2;
      const HostTensor own = *replaced(model_, tensor, is_vector ? convert(rows, DType::kF32) : HostTensor{},
                                       *repairs_, {type_});
      weights_->write(convert(own, type_).bytes);
      return;
    }
    const Shape shape = shape_at(tensor, level_.widths);
    const bool is_vector = shape.size() < 2;
    const int64_t n = std::min(is_vector ? 1 : rows.shape[0], (is_vector ? 1 : shape[0]) - first);
    if (n <= 0) return;
    const uint64_t row = row_bytes(type_, tensor.shape.back());
    weights_->write(leading_of_rows(rows.bytes.first(static_cast<uint64_t>(n) * row), row,
                                    row_bytes(type_, shape.back()), cut_));
  }

  HfLevel finish() {
    write_added_before("");
    for (WrittenFile& file : weights_->finish()) listed_.files.push_back(std::move(file));
    return std::move(listed_);
  }

 private:
  void put(const std::string& name, const std::string& text) {
    write_text(path_ / name, text);
    listed_.files.push_back({name, text.size(), sha256_hex(text)});
  }

  void state_repairs(std::map<std::string, std::string>& about) const {
    const Compensation held = held_in_file(*repairs_);
    if (held != Compensation::kNone) about[kRepairsKey] = name_of(held);
    std::vector<std::string_view> names;
    for (const TensorSpec* tensor : listed_tensors(model_, *repairs_)) names.push_back(tensor->name);
    if (!names.empty()) about[kOwnTensorsKey] = fmt::format("{}", fmt::join(names, ","));
  }

  void write_adapter(const ModelSpec& spec, const fs::path& artifact) {
    HfDirectory adapter{.name = hf_adapter_name(level_.nominal),
                        .nominal = level_.nominal,
                        .n_params = n_adapter_params(*repairs_),
                        .files = {}};
    const fs::path directory = artifact / adapter.name;
    save_adapters(*repairs_, spec, level_, listed_.name, directory);
    for (const char* name : {"adapter_config.json", "adapter_model.safetensors"})
      adapter.files.push_back({name, fs::file_size(directory / name), sha256_file(directory / name)});
    listed_.adapter = std::move(adapter);
  }

  /// Writes the biases before tensor `name` that the source lacks: those of the repairs, and zeros for the
  /// biases that config.json switches on together with them.
  void write_added_before(const std::string& name) {
    for (; next_ < model_.tensors.size() && model_.tensors[next_].name != name; ++next_) {
      const TensorSpec& tensor = model_.tensors[next_];
      const TensorRepair* repair = repairs_->find(tensor.layer, matrix_of(tensor.role).value());
      const HostTensor bias =
          repair != nullptr && repair->bias ? *repair->bias : HostTensor::allocate(type_, tensor.shape);
      weights_->write(convert(bias, type_).bytes);
    }
  }

  Level level_;
  ModelSpec model_;
  const LevelRepairs* repairs_;
  DType type_;
  HfLevel listed_;
  fs::path path_;
  std::unique_ptr<ShardedSafetensorsWriter> weights_;
  size_t next_ = 0;  ///< the next tensor of the model to write
  std::vector<std::byte> cut_;
};

std::vector<LevelDirectory> plan_directories(const ModelSpec& spec, const ElasticPlan& plan,
                                             const HfExportOptions& options, DType type,
                                             const std::vector<LevelRepairs>& all_repairs) {
  std::vector<LevelDirectory> directories;
  std::vector<std::string> problems;
  std::string hint;
  for (Level& level : chosen_levels(plan, options.levels)) {
    const LevelRepairs* repairs = repairs_of(level, all_repairs);
    try {
      if (repairs != nullptr) check(*repairs, spec, level);
      ModelSpec model = hf_level_model(spec, level, repairs);
      directories.emplace_back(std::move(level), std::move(model), repairs, type);
    } catch (const Error& error) {
      problems.push_back(fmt::format("{}: {}", level_stem(level.nominal), error.what()));
      hint = error.hint();
    }
  }
  if (!problems.empty()) throw Error(fmt::format("{}", fmt::join(problems, "; ")), hint);
  return directories;
}

void write_weights(const Checkpoint& source, std::vector<LevelDirectory>& directories, DType type) {
  const ModelSpec& spec = source.spec();
  Progress progress("export", static_cast<int64_t>(spec.tensors.size()), "tensors");
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    check_interrupt();
    const HostTensor whole = source.load(i);
    const int64_t columns = tensor.shape.back(), n_rows = tensor.shape.size() < 2 ? 1 : tensor.shape[0];
    const int64_t step = std::max<int64_t>(1, kSlabElements / columns);
    for (int64_t first = 0; first < n_rows; first += step) {
      const int64_t n = std::min(step, n_rows - first);
      const uint64_t row = row_bytes(whole.dtype, columns);
      const HostTensor part{
          whole.dtype, tensor.shape.size() < 2 ? tensor.shape : Shape{n, columns},
          whole.bytes.subspan(static_cast<uint64_t>(first) * row, static_cast<uint64_t>(n) * row),
          whole.owner};
      const HostTensor rows = with_context(tensor.name, [&] { return convert(part, type); });
      std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic)
      for (size_t k = 0; k < directories.size(); ++k) {
        try {
          directories[k].write(tensor, rows, first);
        } catch (...) {
#pragma omp critical(elastify_export_hf)
          if (!failure) failure = std::current_exception();
        }
      }
      if (failure) std::rethrow_exception(failure);
      source.release_pages();
    }
    progress.advance(1);
  }
}

/// The directory's files with names relative to the artifact, as the manifest lists them.
std::vector<WrittenFile> parts_of(const HfDirectory& directory) {
  std::vector<WrittenFile> parts = directory.files;
  for (WrittenFile& part : parts) part.name = directory.name + "/" + part.name;
  return parts;
}

void list(const HfLevel& level, Manifest& manifest) {
  ListedModel& model = manifest.files.emplace_back();
  model.name = level.name;
  model.level = level.nominal;
  model.architecture = level.architecture;
  model.decoder_ratio = level.decoder_ratio;
  model.total_ratio = level.total_ratio;
  model.n_params = level.n_params;
  model.bytes = level.bytes();
  model.tokenizer = level.has_tokenizer;
  model.compensation = level.compensation;
  model.parts = parts_of(level);
  if (!level.adapter) return;
  ListedAdapter& adapter = manifest.adapters.emplace_back();
  adapter.name = level.adapter->name;
  adapter.level = level.nominal;
  adapter.n_params = level.adapter->n_params;
  adapter.bytes = level.adapter->bytes();
  adapter.parts = parts_of(*level.adapter);
}

/// Switches on the biases that the repairs add, and those that config.json switches on by the same key.
void switch_on_biases(ModelSpec& model, const LevelRepairs& repairs) {
  for (const LayerRepairs& layer : repairs.layers)
    for (const auto& [role, repair] : layer) {
      if (!repair.bias) continue;
      const bool is_mlp = role == Role::kGate || role == Role::kUp || role == Role::kDown;
      (is_mlp ? model.mlp_bias : role == Role::kAttnOut ? model.attn_out_bias : model.qkv_bias) = true;
    }
  if (family_named(model.family).config.attention_bias_key)
    model.qkv_bias = model.attn_out_bias = model.qkv_bias || model.attn_out_bias;
}

}  // namespace

Json to_json(const HfExportOptions& options) {
  return {{"hf", true},
          {"type", options.type ? Json(info(*options.type).name) : Json()},
          {"levels", options.levels}};
}

uint64_t HfDirectory::bytes() const {
  uint64_t sum = 0;
  for (const WrittenFile& file : files) sum += file.bytes;
  return sum;
}

std::string hf_adapter_name(double nominal) {
  return fs::path(lora_name(nominal)).stem().string();
}

HeldRepairs held_in_directory(const fs::path& directory) {
  HeldRepairs held;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("model") || !name.ends_with(".safetensors")) continue;
    const auto about = SafetensorsFile::open(entry.path()).metadata();
    if (const auto parts = about.find(kRepairsKey); parts != about.end())
      held.parts = with_context(fmt::format("{}: {}", entry.path().string(), kRepairsKey),
                                [&] { return parts_named(parts->second); });
    if (const auto own = about.find(kOwnTensorsKey); own != about.end()) {
      std::istringstream names(own->second);
      for (std::string each; std::getline(names, each, ',');) held.own_tensors.push_back(each);
    }
    break;
  }
  return held;
}

ModelSpec hf_level_model(const ModelSpec& spec, const Level& level, const LevelRepairs* repairs) {
  ModelSpec model = narrowed(spec, level.widths);
  if (!model.is_uniform())
    throw Error("widths differ by layer, which a config.json of transformers cannot express",
                "plan with `uniform`, choose other --levels, or leave out --hf: a GGUF can say it");
  if (repairs != nullptr && has(repairs->parts(), Compensation::kBias)) {
    switch_on_biases(model, *repairs);
    try {
      hf_config_json(model, DType::kF32);
    } catch (const Error& error) {
      throw Error(fmt::format("compensation '{}': {}", name_of(repairs->compensation), error.what()),
                  "reorder with --compensate adapter or baked, which need no biases, or leave out --hf");
    }
  }
  if (model.family == "llama" && model.d_model % model.n_heads() != 0) {
    if (model.attn_out_bias || model.mlp_bias)
      throw Error(
          fmt::format("{} heads beside a hidden_size of {}, which is no multiple: transformers refuses it in "
                      "llama models, and mistral ones, which may have it, have no biases",
                      model.n_heads(), model.d_model),
          "reorder with --compensate adapter or baked, choose other --levels, or leave out --hf");
    model.family = "mistral";
  }
  complete_spec(model);
  hf_config_json(model, DType::kF32);  // throws if it cannot express the model
  return model;
}

std::vector<HfLevel> export_hf(const Checkpoint& source, const Permutation& permutation,
                               const ElasticPlan& plan, const HfExportOptions& options,
                               const std::vector<LevelRepairs>& repairs, const Json& configuration,
                               const fs::path& directory) {
  const ModelSpec& spec = source.spec();
  check(permutation, spec);
  check(plan, spec);
  if (source.format() != SourceFormat::kHuggingFace)
    fail("{}: expected a reordered Hugging Face directory", source.path().string());
  const DType type = options.type.value_or(source.lossless_dtype());
  if (!is_float(type))
    throw UsageError(fmt::format("type: {} cannot be stored in a Hugging Face directory", info(type).name),
                     "take f32, f16 or bf16, or leave out --hf: GGUF files hold quantised types");
  std::vector<LevelDirectory> directories = plan_directories(spec, plan, options, type, repairs);
  if (!fs::is_directory(directory) || !fs::is_empty(directory))
    fail("{}: expected an empty directory", directory.string());

  std::vector<HfLevel> listed;
  try {
    for (LevelDirectory& each : directories) each.open(source, permutation, options.shard_bytes, directory);
    write_weights(source, directories, type);
    for (LevelDirectory& each : directories) listed.push_back(each.finish());
    Manifest manifest = manifest_of(spec, permutation);
    manifest.huggingface = true;
    manifest.type = info(type).name;
    manifest.configuration = configuration;
    for (const HfLevel& level : listed) list(level, manifest);
    save_manifest(manifest, directory);
  } catch (...) {
    directories.clear();  // closes the writers, which removes unfinished files
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(directory, ignored))
      fs::remove_all(entry.path(), ignored);
    throw;
  }
  return listed;
}

}  // namespace elastify::exporter
