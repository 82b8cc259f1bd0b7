#include "pipeline/artifact.h"

#include <fmt/ranges.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "export/levels.h"
#include "export/lora_gguf.h"
#include "export/slice.h"
#include "model/imatrix.h"
#include "model/manifest.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "model/repair.h"
#include "reorder/reorder_model.h"

namespace elastify::pipeline {
namespace {

fs::path make_temporary_directory() {
  constexpr const char* kHint = "TMPDIR says where levels are unpacked";
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  if (error) throw SystemError(fmt::format("no directory for temporary files: {}", error.message()), kHint);
  std::string name = (parent / "elastify-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr)
    throw SystemError(fmt::format("{}: cannot make a directory: {}", parent.string(), std::strerror(errno)),
                      kHint);
  return name;
}

}  // namespace

std::optional<fs::path> packed_file(const fs::path& path) {
  const fs::path inside = path / "model.gguf";
  if (has_manifest(path) && fs::exists(inside)) return inside;
  if (path.extension() == ".gguf" && exporter::PackedFile::is_packed(path)) return path;
  return std::nullopt;
}

bool is_artifact(const fs::path& path) {
  return has_manifest(path) || packed_file(path).has_value();
}

std::vector<std::string> artifact_folders(const fs::path& path) {
  std::vector<std::string> names;
  if (!has_manifest(path)) return names;
  for (const ListedFolder& folder : load_manifest(path).folders) names.push_back(folder.name);
  return names;
}

std::shared_ptr<const PlainFiles> PlainFiles::of(const fs::path& artifact, std::optional<double> level) {
  if (const auto folders = artifact_folders(artifact); !folders.empty())
    throw UsageError(fmt::format("{}: it holds artifacts of several types", artifact.string()),
                     fmt::format("give one of them: {}", fmt::join(folders, ", ")));
  const auto packed = packed_file(artifact);
  if (!packed) return std::shared_ptr<const PlainFiles>(new PlainFiles(artifact, artifact));
  const exporter::PackedFile file = exporter::PackedFile::open(*packed);
  std::shared_ptr<PlainFiles> files(new PlainFiles(artifact, make_temporary_directory()));
  files->packed_ = *packed;
  if (!level) {
    exporter::unpack(file, files->directory());
  } else if (const exporter::PackedLevel& wanted = file.level(*level); wanted.nominal < 1) {
    exporter::slice(file, wanted, files->directory() / wanted.name);
    if (wanted.adapter) {
      const exporter::EmbeddedFile& adapter = file.embedded()[*wanted.adapter];
      exporter::extract(file, adapter, files->directory() / adapter.name);
    }
  }
  return files;
}

PlainFiles::~PlainFiles() {
  std::error_code ignored;
  if (directory_ != artifact_) fs::remove_all(directory_, ignored);
}

fs::path PlainFiles::file(double level) const {
  const std::string stem = exporter::level_stem(level);
  if (level >= 1 && !packed_.empty()) return packed_;  // loaded as it is, it gives the full model
  for (const char* suffix : {".gguf", "-00001-of-00002.gguf"})
    if (fs::path file = directory_ / (stem + suffix); fs::exists(file)) return file;
  if (fs::exists(directory_ / stem / "config.json")) return directory_ / stem;
  std::vector<std::string> present;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    const bool second = name.ends_with("-00002-of-00002.gguf");
    const bool model = (name.ends_with(".gguf") && !second) || fs::exists(entry.path() / "config.json");
    if ((name.starts_with("level-") || name.starts_with("full")) && model) present.push_back(name);
  }
  std::sort(present.begin(), present.end());
  throw UsageError(fmt::format("{}: no level {}", artifact_.string(), level),
                   fmt::format("it holds {}", fmt::join(present, ", ")));
}

double stated_ratio(const fs::path& artifact, double level) {
  if (const auto packed = packed_file(artifact))
    return exporter::PackedFile::open(*packed).level(level).decoder_ratio;
  if (const Manifest manifest = load_manifest(artifact); const ListedModel* model = manifest.model_at(level))
    return model->decoder_ratio;
  throw UsageError(fmt::format("{}: no level {} in manifest.json", artifact.string(), level));
}

std::optional<StatedLevel> stated_level(const fs::path& file) {
  if (!fs::is_regular_file(file) || !GgufFile::has_magic(file)) return std::nullopt;
  const GgufMetadata keys = GgufFile::open(file).metadata();
  const auto level = keys.number("elastify.level"), ratio = keys.number("elastify.decoder_ratio");
  if (!level || !ratio || packed_file(file)) return std::nullopt;
  const auto rounded = [](double value) { return std::round(value * 1e6) / 1e6; };  // stored as f32
  return StatedLevel{rounded(*level), rounded(*ratio)};
}

exporter::HeldRepairs held_repairs(const fs::path& model) {
  if (fs::is_directory(model)) return exporter::held_in_directory(model);
  const GgufMetadata keys = GgufFile::open(model).metadata();
  exporter::HeldRepairs held;
  held.parts = with_context(fmt::format("{}: {}", model.string(), exporter::kRepairsKey),
                            [&] { return parts_named(keys.string(exporter::kRepairsKey).value_or("")); });
  if (const auto* names = keys.strings(exporter::kOwnTensorsKey)) held.own_tensors = *names;
  return held;
}

void require_listed_adapter(const fs::path& directory, double level) {
  if (!has_manifest(directory)) return;
  const Manifest manifest = load_manifest(directory);
  const ListedAdapter* adapter = manifest.adapter_at(level);
  if (adapter == nullptr || manifest.packed || fs::exists(directory / adapter->name)) return;
  throw Error(fmt::format("{}: missing, but manifest.json lists it for level {}",
                          (directory / adapter->name).string(), level),
              "copy it here, or export again");
}

std::optional<LevelRepairs> find_adapter(const fs::path& directory, const Checkpoint& model, double level) {
  if (level >= 1) return std::nullopt;
  require_listed_adapter(directory, level);
  const ModelSpec& spec = model.spec();
  if (model.format() == SourceFormat::kHuggingFace) {
    const fs::path adapter = directory / exporter::hf_adapter_name(level);
    if (!fs::exists(adapter)) return std::nullopt;
    return load_adapters(adapter, spec, make_level(spec, level, full_widths(spec)));
  }
  const fs::path adapter = directory / exporter::lora_name(level);
  if (!fs::exists(adapter)) return std::nullopt;
  const std::string architecture =
      GgufFile::open(model.path()).metadata().require_string("general.architecture");
  return exporter::read_lora(adapter, spec, exporter::architecture_named(architecture), level);
}

namespace {

/// The contents of a reordered directory.
struct Reordered {
  Checkpoint model;
  ElasticPlan plan;
  Permutation permutation;
  std::vector<LevelRepairs> repairs;
};

Reordered open_reordered(const fs::path& directory) {
  if (!reorder::is_reordered(directory))
    throw UsageError(fmt::format("{}: not a reordered directory (no permutation.h5 and plan.json in it)",
                                 directory.string()),
                     "run `elastify reorder` first and give the directory that it writes");
  Checkpoint model = Checkpoint::open(directory);
  const ModelSpec& spec = model.spec();
  Reordered reordered{model,
                      load_plan(directory / "plan.json", spec),
                      load_permutation(directory / "permutation.h5", spec),
                      {}};
  for (const Level& level : reordered.plan.levels)
    if (auto found = find_repairs(directory, spec, level)) reordered.repairs.push_back(std::move(*found));
  return reordered;
}

/// These two files make it possible to verify the artifact with only the source model.
void copy_provenance(const fs::path& reordered, const fs::path& artifact) {
  for (const char* name : {"permutation.h5", "plan.json"}) fs::copy_file(reordered / name, artifact / name);
}

}  // namespace

std::vector<exporter::ArtifactFile> write_artifact(const fs::path& reordered,
                                                   const exporter::ExportOptions& options,
                                                   const nlohmann::ordered_json& configuration,
                                                   const fs::path& output, bool replace,
                                                   const fs::path& tokenizer) {
  require_absent(output, replace);
  const auto [model, plan, permutation, repairs] = open_reordered(reordered);
  const auto vocabulary = find_vocabulary(reordered, tokenizer);
  if (!vocabulary)
    log::warn(
        "{}: has no tokenizer, so the GGUF files have none either, and runtimes cannot read text; "
        "--tokenizer FILE puts one in",
        reordered.string());
  nlohmann::ordered_json resolved = configuration;
  resolved["storage"] = info(model.lossless_dtype()).name;
  std::optional<Imatrix> measured;
  if (!options.imatrix.empty()) measured = open_imatrix(options.imatrix, model.spec());
  AtomicDirectory directory(output, replace);
  auto files = exporter::export_model(model, vocabulary ? &*vocabulary : nullptr, permutation, plan, options,
                                      resolved, directory.path(), measured ? &*measured : nullptr, repairs);
  if (options.types.size() == 1)
    copy_provenance(reordered, directory.path());
  else
    for (const auto& type : options.types) copy_provenance(reordered, directory.path() / type.name());
  directory.commit();
  return files;
}

std::vector<exporter::HfLevel> write_hf_artifact(const fs::path& reordered,
                                                 const exporter::HfExportOptions& options,
                                                 const fs::path& output, bool replace) {
  require_absent(output, replace);
  const auto [model, plan, permutation, repairs] = open_reordered(reordered);
  AtomicDirectory directory(output, replace);
  auto levels = exporter::export_hf(
      model, permutation, plan, options, repairs,
      {{"export", to_json(options)}, {"storage", info(model.lossless_dtype()).name}}, directory.path());
  copy_provenance(reordered, directory.path());
  directory.commit();
  return levels;
}

}  // namespace elastify::pipeline
