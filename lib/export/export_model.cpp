#include "export/export_model.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/version.h"
#include "export/gguf_metadata.h"
#include "export/level_repairs.h"
#include "export/lora_gguf.h"
#include "model/rope_order.h"

namespace elastify::exporter {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kManifestFormat = "elastify.artifact";
constexpr int64_t kManifestVersion = 1;
constexpr size_t kPackedBytes = size_t{1} << 20;

/// One file on its way: what it will hold, and its writer.
struct LevelFile {
  Level level;
  ModelSpec model;
  const GgufArchitecture* architecture = nullptr;
  const LevelRepairs* repairs = nullptr;
  ArtifactFile listed;
  std::unique_ptr<GgufWriter> writer;
};

/// From wide to narrow.
std::vector<Level> chosen_levels(const ElasticPlan& plan, const std::vector<double>& asked) {
  std::vector<Level> levels;
  for (auto level = plan.levels.rbegin(); level != plan.levels.rend(); ++level) {
    const bool wanted = asked.empty() || level->nominal >= 1 ||
                        std::any_of(asked.begin(), asked.end(),
                                    [&](double nominal) { return &find_level(plan, nominal) == &*level; });
    if (wanted) levels.push_back(*level);
  }
  return levels;
}

std::vector<LevelFile> plan_files(const ModelSpec& spec, const ElasticPlan& plan,
                                  const ExportOptions& options, const std::vector<LevelRepairs>& repairs) {
  for (const double nominal : options.levels) find_level(plan, nominal);
  std::vector<LevelFile> files;
  for (Level& level : chosen_levels(plan, options.levels)) {
    LevelFile& file = files.emplace_back();
    const std::string name = level.nominal >= 1 ? "full" : level_name(level.nominal);
    for (const LevelRepairs& each : repairs)
      if (level.nominal < 1 && level_name(each.nominal) == name) file.repairs = &each;
    with_context(name, [&] {
      file.model = narrowed(spec, level.widths);
      if (file.repairs != nullptr) {
        check(*file.repairs, spec, level);
        file.model = with_biases(std::move(file.model), *file.repairs);
      }
      file.architecture = &choose_architecture(file.model);
    });
    file.listed = {.name = name + ".gguf",
                   .nominal = level.nominal,
                   .decoder_ratio = level.decoder_ratio,
                   .total_ratio = level.total_ratio,
                   .architecture = std::string(file.architecture->name),
                   .bytes = 0,
                   .n_params = n_params(file.model, full_widths(file.model)),
                   .sha256 = {},
                   .imatrix = {},
                   .compensation = file.repairs != nullptr ? file.repairs->compensation : "none",
                   .adapter = {}};
    file.level = std::move(level);
  }
  return files;
}

[[noreturn]] void refuse_row(const AxisSpace* space, const AxisUse& use, const TensorSpec& tensor,
                             const Level& level, DType type) {
  const int64_t block = info(type).block_size;
  const int64_t row = shape_at(tensor, level.widths).back();
  std::string hint;
  if (space != nullptr && level.nominal < 1) {
    const int64_t width = row / use.block;
    const int64_t step = block / std::gcd(block, use.block);
    const int64_t below = width / step * step, above = below + step;
    const std::string nearest = below < 1 ? fmt::format("the nearest width is {}", above)
                                : above > space->n_units
                                    ? fmt::format("the nearest width is {}", below)
                                    : fmt::format("the nearest widths are {} and {}", below, above);
    hint = nearest + "; ";
    if (space->kind == SpaceKind::kMlp) hint += fmt::format("plan with --grid {}, or ", block);
  }
  throw Error(fmt::format("{}: {}: rows of {} elements are not whole blocks of {}, as {} needs",
                          level_name(level.nominal), tensor.gguf_name, row, block, info(type).name),
              hint + "export with --type f16, which takes any width");
}

/// \throws Error  if a row at some level is not made of whole blocks
void require_whole_blocks(const ModelSpec& spec, const std::vector<LevelFile>& files, DType type) {
  const int64_t block = info(type).block_size;
  for (const LevelFile& file : files) {
    for (const TensorSpec& tensor : spec.tensors) {
      if (!is_kept(spec, tensor, file.level.widths)) continue;
      if (tensor.shape.size() < 2 || shape_at(tensor, file.level.widths).back() % block == 0) continue;
      const AxisUse& use = tensor.axes.back();
      refuse_row(use.space < 0 ? nullptr : &spec.spaces[static_cast<size_t>(use.space)], use, tensor,
                 file.level, type);
    }
  }
}

void add_elastic_keys(GgufMetadata& keys, const LevelFile& file, const std::vector<LevelFile>& files,
                      const std::string& spec_digest, const std::string& permutation_digest) {
  std::vector<float> levels;
  for (auto each = files.rbegin(); each != files.rend(); ++each)
    levels.push_back(static_cast<float>(each->level.nominal));
  const auto widths = [](const std::vector<int64_t>& values) {
    return GgufArray{std::vector<int32_t>(values.begin(), values.end())};
  };
  keys.set("elastify.version", std::string(kVersion));
  keys.set("elastify.level", static_cast<float>(file.level.nominal));
  keys.set("elastify.levels", GgufArray{std::move(levels)});
  keys.set("elastify.decoder_ratio", static_cast<float>(file.level.decoder_ratio));
  keys.set("elastify.full", file.level.nominal >= 1);
  keys.set("elastify.kv_groups", widths(file.model.layer_kv_heads));
  keys.set("elastify.d_ff", widths(file.model.layer_d_ff));
  if (file.repairs != nullptr)
    if (const std::string held = held_in_file(*file.repairs); !held.empty())
      keys.set("elastify.repairs", held);
  keys.set("elastify.spec_hash", spec_digest);
  keys.set("elastify.permutation_digest", permutation_digest);
}

/// The leading rows, and of each row the leading blocks.
void write_prefix(GgufWriter& writer, const HostTensor& encoded, const Shape& shape) {
  const uint64_t kept_row = row_bytes(encoded.dtype, shape.back());
  const uint64_t full_row = row_bytes(encoded.dtype, encoded.shape.back());
  const auto rows = static_cast<uint64_t>(n_rows(shape));
  if (kept_row == full_row) {
    writer.write(encoded.bytes.first(rows * full_row));
    return;
  }
  const uint64_t rows_at_once = std::clamp<uint64_t>(kPackedBytes / kept_row, 1, rows);
  std::vector<std::byte> packed(rows_at_once * kept_row);
  for (uint64_t first = 0; first < rows; first += rows_at_once) {
    const uint64_t n = std::min(rows_at_once, rows - first);
    for (uint64_t i = 0; i < n; ++i)
      std::memcpy(packed.data() + i * kept_row, encoded.bytes.data() + (first + i) * full_row, kept_row);
    writer.write(std::span(packed).first(n * kept_row));
  }
}

/// A tensor of the model as the level's file has it, and the bias that repairs put behind it.
void write_level_tensor(const LevelFile& file, const ModelSpec& spec, const TensorSpec& tensor,
                        const HostTensor& encoded, DType type) {
  const auto own = file.repairs != nullptr ? replaced(tensor, encoded, *file.repairs, type) : std::nullopt;
  if (own) {
    file.writer->write(own->bytes);
  } else {
    write_prefix(*file.writer, encoded, shape_at(tensor, file.level.widths));
  }
  if (file.repairs == nullptr) return;
  if (const auto bias = added_bias(spec, tensor, *file.repairs)) file.writer->write(bias->bytes);
}

bool is_rotary(Role role) {
  return role == Role::kQuery || role == Role::kKey || role == Role::kQueryBias || role == Role::kKeyBias;
}

/// A full tensor as the files hold it, in the orders of rows that they want.
class EncodedTensor {
 public:
  EncodedTensor(const Checkpoint& source, size_t index, DType type, const std::vector<LevelFile>& files) {
    const TensorSpec& tensor = source.spec().tensors[index];
    halves_ = source.load(index, tensor.shape.size() > 1 ? type : DType::kF32);
    const bool interleave =
        is_rotary(tensor.role) && std::any_of(files.begin(), files.end(), [](const LevelFile& file) {
          return file.architecture->rope == RopeOrder::kInterleaved;
        });
    // Rows move inside heads and levels keep whole heads, so that a prefix of this is the order of the
    // prefix.
    if (interleave)
      interleaved_ =
          reorder_rope_rows(halves_, source.spec().head_dim, RopeOrder::kHalves, RopeOrder::kInterleaved);
  }

  const HostTensor& in(RopeOrder order) const {
    return interleaved_ && order == RopeOrder::kInterleaved ? *interleaved_ : halves_;
  }

 private:
  HostTensor halves_;
  std::optional<HostTensor> interleaved_;
};

void open_writers(std::vector<LevelFile>& files, const GgufMetadata& shared, const ModelSpec& spec,
                  const Permutation& permutation, DType type, const fs::path& directory) {
  const std::string spec_digest = spec_hash(spec), permutation_digest = digest(permutation);
  for (LevelFile& file : files) {
    GgufMetadata keys = model_keys(file.model, *file.architecture, type);
    for (const auto& [key, value] : shared.entries()) keys.set(key, value);
    add_elastic_keys(keys, file, files, spec_digest, permutation_digest);
    file.writer = std::make_unique<GgufWriter>(directory / file.listed.name, keys,
                                               gguf_tensors(file.model, *file.architecture, type));
    if (const auto factors = rope_factors(file.model); !factors.empty())
      file.writer->write(std::as_bytes(std::span(factors)));
  }
}

void write_tensors(const Checkpoint& source, std::vector<LevelFile>& files, DType type) {
  const ModelSpec& spec = source.spec();
  Progress progress("export", static_cast<int64_t>(spec.tensors.size()), "tensors");
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    with_context(tensor.name, [&] {
      const EncodedTensor encoded(source, i, type, files);
      // Hashing is most of the work, and files do not depend on each other.
      std::exception_ptr failure;
      const auto n_files = static_cast<int64_t>(files.size());
#pragma omp parallel for schedule(dynamic)
      for (int64_t k = 0; k < n_files; ++k) {
        try {
          const LevelFile& file = files[static_cast<size_t>(k)];
          if (!is_kept(spec, tensor, file.level.widths)) continue;
          write_level_tensor(file, spec, tensor, encoded.in(file.architecture->rope), type);
        } catch (...) {
#pragma omp critical(elastify_export)
          if (!failure) failure = std::current_exception();
        }
      }
      if (failure) std::rethrow_exception(failure);
    });
    progress.advance(1);
  }
}

/// An importance matrix of a model's file, under the names that its tensors have there.
Imatrix imatrix_for(const Imatrix& reordered, const ModelSpec& spec, const LevelFile& file) {
  Imatrix narrow = narrowed(reordered, spec, file.level.widths);
  Imatrix named = narrow;
  named.entries.clear();
  for (const TensorSpec& tensor : file.model.tensors)
    if (auto entry = narrow.entries.extract(tensor.gguf_name)) {  // q, k and v as one: they share their input
      entry.key() = name_in_file(tensor, *file.architecture);
      named.entries.insert(std::move(entry));
    }
  return named;
}

void write_imatrices(const Imatrix& reordered, const ModelSpec& spec, std::vector<LevelFile>& files,
                     const fs::path& directory) {
  for (LevelFile& file : files) {
    constexpr size_t kPrefix = std::string_view("level").size();
    const std::string level = file.level.nominal >= 1 ? "" : level_name(file.level.nominal).substr(kPrefix);
    ImatrixFile written{.name = "imatrix" + level + ".gguf", .bytes = 0, .sha256 = {}};
    const fs::path path = directory / written.name;
    written.sha256 = save_imatrix(imatrix_for(reordered, spec, file), path);
    written.bytes = fs::file_size(path);
    file.listed.imatrix = std::move(written);
  }
}

void write_adapters(const ModelSpec& spec, const Permutation& permutation, std::vector<LevelFile>& files,
                    DType type, const fs::path& directory) {
  for (LevelFile& file : files) {
    if (file.repairs == nullptr || !file.repairs->has_adapters()) continue;
    GgufMetadata keys;
    keys.set("elastify.version", std::string(kVersion));
    keys.set("elastify.level", static_cast<float>(file.level.nominal));
    keys.set("elastify.spec_hash", spec_hash(spec));
    keys.set("elastify.permutation_digest", digest(permutation));
    AdapterFile written{.name = lora_name(file.level.nominal),
                        .bytes = 0,
                        .n_params = n_lora_params(*file.repairs),
                        .ranks = {},
                        .sha256 = {}};
    for (const auto& [tensor, repair] : repair_places(*file.repairs, spec, file.level.widths))
      if (repair->a) written.ranks.emplace_back(tensor->gguf_name, repair->rank());
    const fs::path path = directory / written.name;
    written.sha256 = write_lora(*file.repairs, spec, file.level, file.architecture->name, keys, type, path);
    written.bytes = fs::file_size(path);
    file.listed.adapter = std::move(written);
  }
}

Json manifest_json(const std::vector<ArtifactFile>& files, const ModelSpec& spec,
                   const Permutation& permutation, DType type, const Json& configuration) {
  Json listed = Json::array();
  for (const ArtifactFile& file : files)
    listed.push_back({{"name", file.name},
                      {"level", file.nominal},
                      {"architecture", file.architecture},
                      {"decoder_ratio", file.decoder_ratio},
                      {"total_ratio", file.total_ratio},
                      {"n_params", file.n_params},
                      {"bytes", file.bytes},
                      {"sha256", file.sha256},
                      {"compensation", file.compensation}});
  Json adapters = Json::array();
  for (const ArtifactFile& file : files) {
    if (!file.adapter) continue;
    Json ranks = Json::object();
    for (const auto& [name, rank] : file.adapter->ranks) ranks[name] = rank;
    adapters.push_back({{"name", file.adapter->name},
                        {"level", file.nominal},
                        {"n_params", file.adapter->n_params},
                        {"ranks", std::move(ranks)},
                        {"bytes", file.adapter->bytes},
                        {"sha256", file.adapter->sha256}});
  }
  Json imatrices = Json::array();
  for (const ArtifactFile& file : files)
    if (file.imatrix)
      imatrices.push_back({{"name", file.imatrix->name},
                           {"level", file.nominal},
                           {"bytes", file.imatrix->bytes},
                           {"sha256", file.imatrix->sha256}});
  Json manifest{{"format", kManifestFormat},
                {"version", kManifestVersion},
                {"tool", {{"name", "elastify"}, {"version", kVersion}}},
                {"spec_hash", spec_hash(spec)},
                {"permutation_digest", digest(permutation)},
                {"type", info(type).name},
                {"configuration", configuration},
                {"files", std::move(listed)}};
  if (!adapters.empty()) manifest["adapters"] = std::move(adapters);
  if (!imatrices.empty()) manifest["imatrices"] = std::move(imatrices);
  return manifest;
}

void say_notes(const ModelSpec& spec) {
  if (spec.sliding_window > 0 && spec.sliding_window < spec.max_seq)
    log::info(
        "the model has a sliding window of {} tokens, the graph in stock llama.cpp has none: context_length "
        "is {}, "
        "up to which both are the same",
        spec.sliding_window, spec.sliding_window);
}

void remove_contents(const fs::path& directory) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) fs::remove_all(entry.path(), ignored);
}

}  // namespace

std::vector<ArtifactFile> export_model(const Checkpoint& source, const Vocabulary* vocabulary,
                                       const Permutation& permutation, const ElasticPlan& plan,
                                       const ExportOptions& options, const Json& configuration,
                                       const fs::path& directory, const Imatrix* imatrix,
                                       const std::vector<LevelRepairs>& repairs) {
  const ModelSpec& spec = source.spec();
  check(permutation, spec);
  check(plan, spec);
  if (options.adapter_type != DType::kF32 && options.adapter_type != DType::kF16)
    throw UsageError(fmt::format("adapter type: {} is not supported", info(options.adapter_type).name),
                     "expected f32 or f16");
  std::vector<LevelFile> files = plan_files(spec, plan, options, repairs);
  require_whole_blocks(spec, files, options.type);
  std::optional<Imatrix> moved;
  if (imatrix != nullptr) moved = reordered(*imatrix, spec, permutation);
  const GgufMetadata shared = shared_keys(source, vocabulary);
  if (!fs::is_directory(directory) || !fs::is_empty(directory))
    fail("{}: expected an empty directory", directory.string());
  say_notes(spec);

  std::vector<ArtifactFile> listed;
  try {
    open_writers(files, shared, spec, permutation, options.type, directory);
    write_tensors(source, files, options.type);
    write_adapters(spec, permutation, files, options.adapter_type, directory);
    if (moved) write_imatrices(*moved, spec, files, directory);
    for (LevelFile& file : files) {
      check_interrupt();
      file.listed.sha256 = file.writer->finish();
      file.listed.bytes = file.writer->size();
      listed.push_back(file.listed);
    }
    write_text(directory / "manifest.json",
               manifest_json(listed, spec, permutation, options.type, configuration)
                       .dump(2, ' ', false, Json::error_handler_t::replace) +
                   "\n");
  } catch (...) {
    files.clear();  // closes the writers, which removes what they have not finished
    remove_contents(directory);
    throw;
  }
  return listed;
}

}  // namespace elastify::exporter
