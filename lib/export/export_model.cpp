#include "export/export_model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/version.h"
#include "export/gguf_metadata.h"
#include "export/level_repairs.h"
#include "export/levels.h"
#include "export/lora_gguf.h"
#include "export/pack.h"
#include "export/shared_common.h"
#include "export/write_tensors.h"
#include "model/manifest.h"

namespace elastify::exporter {
namespace {

using Json = nlohmann::ordered_json;

/// One file while it is written: its contents and its writer.
struct LevelFile {
  Level level;
  PlainFile plain;  ///< has only the keys elastify.*, see with_all_keys()
  const LevelRepairs* repairs = nullptr;
  WeightType type = DType::kF16;
  fs::path directory;
  ArtifactFile listed;
  std::unique_ptr<GgufWriter> writer;
  std::unique_ptr<GgufWriter> part;  ///< null unless packed
};

/// All files of one type.
struct TypeExport {
  std::vector<LevelFile> files;
  std::unique_ptr<PackedWriter> packed;  ///< null: plain files
};

/// Describes the file of every level, but for what depends on the type.
std::vector<LevelFile> plan_levels(const ModelSpec& spec, const ElasticPlan& plan,
                                   const ExportOptions& options, const std::vector<LevelRepairs>& repairs) {
  std::vector<LevelFile> files;
  for (Level& level : chosen_levels(plan, options.levels)) {
    LevelFile& file = files.emplace_back();
    const std::string name = level_stem(level.nominal);
    file.repairs = repairs_of(level, repairs);
    with_context(name, [&] {
      file.plain.model = narrowed(spec, level.widths);
      if (file.repairs != nullptr) {
        check(*file.repairs, spec, level);
        file.plain.model = with_biases(std::move(file.plain.model), *file.repairs);
      }
      file.plain.architecture = &choose_architecture(file.plain.model);
    });
    file.listed.name = name + ".gguf";
    file.listed.nominal = level.nominal;
    file.listed.decoder_ratio = level.decoder_ratio;
    file.listed.total_ratio = level.total_ratio;
    file.listed.architecture = file.plain.architecture->name;
    file.listed.n_params = n_params(file.plain.model, full_widths(file.plain.model));
    if (file.repairs != nullptr) file.listed.compensation = name_of(file.repairs->compensation);
    file.level = std::move(level);
  }
  return files;
}

bool fuses_qkv(const std::vector<LevelFile>& files) {
  return std::any_of(files.begin(), files.end(),
                     [](const LevelFile& file) { return file.plain.architecture->fused_qkv; });
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
  const bool smaller_blocks = block > 32 && row % 32 == 0;
  throw Error(
      fmt::format("{}: {}: rows of {} elements are not whole blocks of {}, as {} needs",
                  level_name(level.nominal), tensor.gguf_name, row, block, info(type).name),
      hint + (smaller_blocks ? "export with --type q8_0, q5_1, q5_0, q4_1 or q4_0, whose blocks have 32"
                             : "export with --type f16, which takes any width"));
}

/// \throws Error  if a row of some level does not consist of whole blocks
void require_whole_blocks(const ModelSpec& spec, const std::vector<LevelFile>& files, bool fused_qkv) {
  for (const LevelFile& file : files) {
    for (const TensorSpec& tensor : spec.tensors) {
      if (!is_kept(spec, tensor, file.level.widths)) continue;
      const DType type = file.type.of(tensor, spec, fused_qkv);
      if (shape_at(tensor, file.level.widths).back() % info(type).block_size == 0) continue;
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
  keys.set("elastify.kv_groups", widths(file.plain.model.layer_kv_heads));
  keys.set("elastify.d_ff", widths(file.plain.model.layer_d_ff));
  if (file.repairs != nullptr) {
    const Compensation held = held_in_file(*file.repairs);
    if (held != Compensation::kNone) keys.set(kRepairsKey, name_of(held));
    std::vector<std::string> names;
    for (const TensorSpec* tensor : listed_tensors(file.plain.model, *file.repairs))
      names.push_back(tensor->gguf_name);
    if (!names.empty()) keys.set(kOwnTensorsKey, GgufArray{std::move(names)});
  }
  keys.set("elastify.spec_hash", spec_digest);
  keys.set("elastify.permutation_digest", permutation_digest);
}

/// The file with all its keys, shared ones included. These hold the vocabulary, which is large, so callers
/// keep the result only briefly.
PlainFile with_all_keys(const LevelFile& file, const GgufMetadata& shared) {
  PlainFile plain = file.plain;
  plain.keys = model_keys(plain.model, *plain.architecture, file.type);
  for (const GgufMetadata* keys : {&shared, &file.plain.keys})
    for (const auto& [key, value] : keys->entries()) plain.keys.set(key, value);
  return plain;
}

/// Fills in each file's own keys, tensor table and size.
void describe(std::vector<LevelFile>& files, const GgufMetadata& shared, const ModelSpec& spec,
              const Permutation& permutation, bool fused_qkv) {
  const std::string spec_digest = spec_hash(spec), permutation_digest = digest(permutation);
  for (LevelFile& file : files) {
    PlainFile& plain = file.plain;
    add_elastic_keys(plain.keys, file, files, spec_digest, permutation_digest);
    plain.tensors = gguf_tensors(plain.model, *plain.architecture, file.type, fused_qkv);
    double bits = 0;
    for (const TensorInfo& tensor : plain.tensors)
      bits += 8 * static_cast<double>(n_bytes(tensor.dtype, tensor.shape));
    file.listed.bits_per_weight = bits / static_cast<double>(file.listed.n_params);
    file.listed.bytes = gguf_size(with_all_keys(file, shared).keys, plain.tensors);
  }
}

/// Names of the level's tensors that its repairs replace.
std::set<std::string> replaced_names(const LevelFile& file) {
  std::set<std::string> names;
  if (file.repairs == nullptr) return names;
  for (const TensorSpec& tensor : file.plain.model.tensors)
    if (is_replaced(tensor, *file.repairs)) names.insert(name_in_file(tensor, *file.plain.architecture));
  return names;
}

/// Opens the levels' parts.
/// \returns the contents of the packed file: parts, adapters and importance matrices, in this order
PackedContents open_parts(std::vector<LevelFile>& files, const PlainFile& full, const GgufMetadata& shared) {
  PackedContents contents;
  const auto embed = [&](const std::string& name, uint64_t bytes) {
    contents.embedded.push_back({.name = name, .offset = 0, .bytes = bytes, .sha256 = {}});
    return contents.embedded.size() - 1;
  };
  for (auto file = files.rbegin(); file != files.rend(); ++file) {
    const ArtifactFile& listed = file->listed;
    PackedLevel& level = contents.levels.emplace_back();
    level.name = listed.name;
    level.nominal = listed.nominal;
    level.decoder_ratio = listed.decoder_ratio;
    level.total_ratio = listed.total_ratio;
    level.architecture = listed.architecture;
    level.compensation = listed.compensation;
    level.kv_groups = file->plain.model.layer_kv_heads;
    level.d_ff = file->plain.model.layer_d_ff;
    level.bytes = listed.bytes;
    if (listed.nominal >= 1) continue;
    const PartHeader header = part_header(full, with_all_keys(*file, shared), replaced_names(*file));
    const std::string name = "part" + level_suffix(listed.nominal) + ".gguf";
    file->part = std::make_unique<GgufWriter>(file->directory / name, header.keys, header.tensors);
    level.part = embed(name, gguf_size(header.keys, header.tensors));
  }
  // From wide to narrow, the order of the manifest.
  for (size_t i = 0; i < files.size(); ++i)
    if (const auto& adapter = files[i].listed.adapter)
      contents.levels[files.size() - 1 - i].adapter = embed(adapter->name, adapter->bytes);
  for (size_t i = 0; i < files.size(); ++i)
    if (const auto& imatrix = files[i].listed.imatrix)
      contents.levels[files.size() - 1 - i].imatrix = embed(imatrix->name, imatrix->bytes);
  return contents;
}

void open_writers(TypeExport& type, const GgufMetadata& shared, bool packed) {
  for (LevelFile& file : type.files) {
    const auto target = packed ? GgufWriter::Target::kNowhere : GgufWriter::Target::kFile;
    file.writer = std::make_unique<GgufWriter>(file.directory / file.listed.name,
                                               with_all_keys(file, shared).keys, file.plain.tensors, target);
  }
  if (!packed) return;
  const PlainFile full = with_all_keys(type.files[0], shared);
  PackedContents contents = open_parts(type.files, full, shared);
  type.packed =
      std::make_unique<PackedWriter>(type.files[0].directory / "model.gguf", full, std::move(contents));
}

TensorSink sink_of(const LevelFile& file, GgufWriter* writer) {
  return {&file.level, file.plain.architecture, file.repairs, file.type, writer, file.part.get()};
}

std::vector<TensorSink> sinks_of(const std::vector<TypeExport>& types) {
  std::vector<TensorSink> sinks;
  for (const TypeExport& type : types) {
    for (const LevelFile& file : type.files) sinks.push_back(sink_of(file, file.writer.get()));
    if (type.packed) sinks.push_back(sink_of(type.files[0], &type.packed->model()));
  }
  return sinks;
}

/// Writes rope_freqs.weight, the only tensor before those of the spec.
void write_rope_factors(const std::vector<TensorSink>& sinks, const ModelSpec& spec) {
  const std::vector<float> factors = rope_factors(spec);
  if (factors.empty()) return;
  for (const TensorSink& sink : sinks) write(sink, std::as_bytes(std::span(factors)));
}

/// The importance matrix of a level's file, with the names that the tensors have in that file.
Imatrix imatrix_for(const Imatrix& reordered, const ModelSpec& spec, const LevelFile& file) {
  Imatrix narrow = narrowed(reordered, spec, file.level.widths);
  Imatrix named = narrow;
  named.entries.clear();
  for (const TensorSpec& tensor : file.plain.model.tensors)
    if (auto entry = narrow.entries.extract(tensor.gguf_name)) {  // fused q, k and v share their input
      entry.key() = name_in_file(tensor, *file.plain.architecture);
      named.entries.insert(std::move(entry));
    }
  return named;
}

void write_imatrices(const Imatrix& reordered, const ModelSpec& spec, std::vector<LevelFile>& files) {
  for (LevelFile& file : files) {
    ImatrixFile written{
        .name = "imatrix" + level_suffix(file.level.nominal) + ".gguf", .bytes = 0, .sha256 = {}};
    const fs::path path = file.directory / written.name;
    written.sha256 = save_imatrix(imatrix_for(reordered, spec, file), path);
    written.bytes = fs::file_size(path);
    file.listed.imatrix = std::move(written);
  }
}

void write_adapters(const ModelSpec& spec, const Permutation& permutation, std::vector<LevelFile>& files,
                    DType type) {
  for (LevelFile& file : files) {
    if (file.repairs == nullptr) continue;
    const GgufArchitecture& architecture = *file.plain.architecture;
    const std::vector<LoraMatrix> matrices = lora_matrices(*file.repairs, spec, file.level, architecture);
    if (matrices.empty()) continue;
    GgufMetadata keys;
    keys.set("elastify.version", std::string(kVersion));
    keys.set("elastify.level", static_cast<float>(file.level.nominal));
    keys.set("elastify.spec_hash", spec_hash(spec));
    keys.set("elastify.permutation_digest", digest(permutation));
    AdapterFile written{.name = lora_name(file.level.nominal),
                        .bytes = 0,
                        .n_params = n_lora_params(matrices),
                        .ranks = {},
                        .sha256 = {}};
    for (const LoraMatrix& matrix : matrices) written.ranks.emplace_back(matrix.name, matrix.rank());
    const fs::path path = file.directory / written.name;
    written.sha256 = write_lora(matrices, architecture, keys, type, path);
    written.bytes = fs::file_size(path);
    file.listed.adapter = std::move(written);
  }
}

/// \returns the finished files; for a packed file, those that slicing will give
std::vector<ArtifactFile> finish(TypeExport& type) {
  std::vector<ArtifactFile> listed;
  for (LevelFile& file : type.files) {
    check_interrupt();
    file.listed.sha256 = file.writer->finish();
    listed.push_back(file.listed);
  }
  return listed;
}

/// \returns the packed file
WrittenFile finish_packed(TypeExport& type, const std::vector<ArtifactFile>& listed) {
  PackedContents& contents = type.packed->contents();
  for (size_t i = 0; i < listed.size(); ++i) {
    PackedLevel& level = contents.levels[listed.size() - 1 - i];
    level.sha256 = listed[i].sha256;
    if (level.part) contents.embedded[*level.part].sha256 = type.files[i].part->finish();
    if (level.adapter) contents.embedded[*level.adapter].sha256 = listed[i].adapter->sha256;
    if (level.imatrix) contents.embedded[*level.imatrix].sha256 = listed[i].imatrix->sha256;
  }
  const std::string sha256 = type.packed->finish();
  return {"model.gguf", type.packed->size(), sha256};
}

/// Adds a model's file and the adapter and importance matrix beside it.
void list(const ArtifactFile& file, Manifest& manifest) {
  ListedModel& model = manifest.files.emplace_back();
  model.name = file.name;
  model.level = file.nominal;
  model.architecture = file.architecture;
  model.decoder_ratio = file.decoder_ratio;
  model.total_ratio = file.total_ratio;
  model.n_params = file.n_params;
  model.bits_per_weight = std::round(file.bits_per_weight * 1e4) / 1e4;
  model.bytes = file.bytes;
  model.sha256 = file.sha256;
  model.compensation = file.compensation;
  if (file.adapter) {
    ListedAdapter& adapter = manifest.adapters.emplace_back();
    adapter.name = file.adapter->name;
    adapter.level = file.nominal;
    adapter.n_params = file.adapter->n_params;
    adapter.ranks = file.adapter->ranks;
    adapter.bytes = file.adapter->bytes;
    adapter.sha256 = file.adapter->sha256;
  }
  if (file.imatrix)
    manifest.imatrices.push_back(
        {file.imatrix->name, file.nominal, file.imatrix->bytes, file.imatrix->sha256});
}

void say_notes(const ModelSpec& spec) {
  const int64_t window = spec.layer(0).sliding_window;  // a GGUF file states one window for all layers
  if (window > 0 && window < spec.max_seq)
    log::info(
        "the model has a sliding window of {} tokens, the graph in stock llama.cpp has none: context_length "
        "is {}, "
        "up to which both are the same",
        window, window);
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
  if (options.packed && options.shared_common)
    throw UsageError("packed and shared_common are two layouts of the same files", "choose one of them");
  if (options.types.empty()) throw UsageError("type: none is given", "such as --type q8_0");
  std::vector<TypeExport> types;
  for (const WeightType& type : options.types) {
    std::vector<LevelFile>& files = types.emplace_back().files;
    files = plan_levels(spec, plan, options, repairs);
    for (LevelFile& file : files) {
      file.type = type;
      file.listed.type = type.name();
      file.directory = options.types.size() == 1 ? directory : directory / type.name();
    }
    require_whole_blocks(spec, files, fuses_qkv(files));
  }
  const bool fused_qkv = fuses_qkv(types[0].files);
  std::optional<Imatrix> moved;
  if (imatrix != nullptr) moved = reordered(*imatrix, spec, permutation);
  const ColumnImportance importance = column_importance(moved, spec);
  const GgufMetadata shared = shared_keys(source, vocabulary);
  if (!fs::is_directory(directory) || !fs::is_empty(directory))
    fail("{}: expected an empty directory", directory.string());
  say_notes(spec);

  std::vector<ArtifactFile> listed;
  try {
    for (TypeExport& type : types) {
      describe(type.files, shared, spec, permutation, fused_qkv);
      write_adapters(spec, permutation, type.files, options.adapter_type);
      if (moved) write_imatrices(*moved, spec, type.files);
      open_writers(type, shared, options.packed);
    }
    const std::vector<TensorSink> sinks = sinks_of(types);
    write_rope_factors(sinks, spec);
    write_tensors(source, sinks, fused_qkv, importance, options.max_ram);
    const Manifest top = manifest_of(spec, permutation);
    for (TypeExport& type : types) {
      const fs::path folder = type.files[0].directory;
      const std::vector<ArtifactFile> of_type = finish(type);
      Manifest manifest = top;
      manifest.type = type.files[0].type.name();
      manifest.configuration = configuration;
      for (const ArtifactFile& file : of_type) list(file, manifest);
      if (type.packed) manifest.packed = finish_packed(type, of_type);
      if (options.shared_common) share_common(folder, manifest);
      save_manifest(manifest, folder);
      listed.insert(listed.end(), of_type.begin(), of_type.end());
    }
    if (options.types.size() == 1) return listed;
    Manifest manifest = top;
    for (const WeightType& type : options.types) {
      const std::string name(type.name());
      manifest.folders.push_back({name, name, sha256_file(manifest_path(directory / name))});
    }
    save_manifest(manifest, directory);
  } catch (...) {
    types.clear();  // closes the writers, which removes unfinished files
    remove_contents(directory);
    throw;
  }
  return listed;
}

}  // namespace elastify::exporter
