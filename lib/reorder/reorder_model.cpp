#include "reorder/reorder_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "io/safetensors.h"

namespace elastify::reorder {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kPermutation = "permutation.h5";
constexpr const char* kPlan = "plan.json";
constexpr const char* kTokenizerGguf = "tokenizer.gguf";

DType stored_dtype(const Checkpoint& source, const ReorderOptions& options) {
  if (options.dtype.empty()) return source.lossless_dtype();
  constexpr const char* kHint =
      "expected f32, f16 or bf16; quantised types come with `elastify export --type`";
  for (const DTypeInfo& type : all_dtypes()) {
    if (type.name == options.dtype && is_float(type.dtype)) return type.dtype;
  }
  throw UsageError(fmt::format("dtype: models cannot be stored as '{}'", options.dtype), kHint);
}

/// Which tensors go into which file: in the spec's order, a new file where the next tensor would exceed the
/// limit.
std::vector<std::vector<size_t>> plan_shards(const ModelSpec& spec, DType dtype, uint64_t shard_bytes) {
  std::vector<std::vector<size_t>> shards(1);
  uint64_t filled = 0;
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const uint64_t bytes = n_bytes(dtype, spec.tensors[i].shape);
    if (!shards.back().empty() && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(i);
    filled += bytes;
  }
  return shards;
}

std::string shard_name(size_t index, size_t n_shards) {
  if (n_shards == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, n_shards);
}

void write_index(const ModelSpec& spec, DType dtype, const std::vector<std::vector<size_t>>& shards,
                 const fs::path& directory) {
  uint64_t total = 0;
  std::map<std::string, std::string> file_of;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    for (const size_t i : shards[shard]) {
      total += n_bytes(dtype, spec.tensors[i].shape);
      file_of[spec.tensors[i].name] = shard_name(shard, shards.size());
    }
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", file_of}};
  write_text(directory / kIndex, index.dump(2) + "\n");
}

void write_weights(const Checkpoint& source, const Permutation& permutation, DType dtype,
                   uint64_t shard_bytes, const fs::path& directory) {
  const ModelSpec& spec = source.spec();
  const auto shards = plan_shards(spec, dtype, shard_bytes);
  Progress progress("reorder", static_cast<int64_t>(spec.tensors.size()), "tensors");
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    std::vector<TensorInfo> tensors;
    for (const size_t i : shards[shard])
      tensors.push_back({spec.tensors[i].name, dtype, spec.tensors[i].shape});
    SafetensorsWriter writer(directory / shard_name(shard, shards.size()), std::move(tensors),
                             {{"format", "pt"}});
    for (const size_t i : shards[shard]) {
      const TensorSpec& tensor = spec.tensors[i];
      with_context(tensor.name,
                   [&] { writer.write(permute(source.load(i, dtype), tensor, permutation).bytes); });
      progress.advance(1);
    }
    writer.finish();
  }
  if (shards.size() > 1) write_index(spec, dtype, shards, directory);
}

bool stores_all_as(const Checkpoint& source, DType dtype) {
  for (size_t i = 0; i < source.spec().tensors.size(); ++i) {
    if (source.stored_dtype(i) != dtype) return false;
  }
  return true;
}

void write_config(const Checkpoint& source, DType dtype, const fs::path& directory) {
  if (source.format() != SourceFormat::kHuggingFace) {
    write_text(directory / kConfig, hf_config_json(source.spec(), dtype));
    return;
  }
  std::string text = read_text(source.path() / kConfig);
  if (!stores_all_as(source, dtype)) {
    const Json stated = Json::parse(hf_config_json(source.spec(), dtype)).at("torch_dtype");
    Json config = Json::parse(text);  // opening the checkpoint has shown that it is valid
    for (const char* key : {"torch_dtype", "dtype"}) {
      if (config.contains(key)) config[key] = stated;
    }
    text = config.dump(2) + "\n";
  }
  write_text(directory / kConfig, text);
}

/// "tokenizer*.json" and whatever else a tokenizer in a Hugging Face directory is made of.
bool belongs_to_tokenizer(const std::string& name) {
  constexpr std::string_view kNames[] = {
      "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
      "merges.txt",      "chat_template.jinja",     kTokenizerGguf};
  return (name.starts_with("tokenizer") && name.ends_with(".json")) ||
         std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

bool belongs_to_model(const std::string& name) {
  return name == "generation_config.json" || name == "README.md" || name.starts_with("LICENSE") ||
         name.starts_with("NOTICE") || name.starts_with("USE_POLICY");
}

/// \returns true if a tokenizer was among the files
bool copy_companions(const fs::path& from, const fs::path& to) {
  bool has_tokenizer = false;
  for (const auto& entry : fs::directory_iterator(from)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = entry.path().filename().string();
    if (!belongs_to_tokenizer(name) && !belongs_to_model(name)) continue;
    write_text(to / name, read_text(entry.path()));
    has_tokenizer |= name == "tokenizer.json" || name == "tokenizer.model" || name == "vocab.json";
  }
  return has_tokenizer;
}

/// A vocabulary-only GGUF file, from which an export takes what config.json and the tokenizer's files cannot
/// say.
void keep_gguf_keys(const fs::path& source, const fs::path& target) {
  const GgufFile file = GgufFile::open(source);
  GgufMetadata kept;
  for (const auto& [key, value] : file.metadata().entries()) {
    const bool about_model = key.starts_with("general.") && key != "general.alignment" &&
                             key != "general.file_type" && key != "general.quantization_version" &&
                             !key.starts_with("general.tag");
    if (about_model || key.starts_with("tokenizer.")) kept.set(key, value);
  }
  GgufWriter writer(target, kept, {});
  writer.finish();
}

void write_tokenizer(const Checkpoint& source, const Vocabulary* vocabulary, const fs::path& directory) {
  if (source.format() == SourceFormat::kHuggingFace && copy_companions(source.path(), directory)) return;
  if (source.format() == SourceFormat::kGguf) keep_gguf_keys(source.path(), directory / kTokenizerGguf);
  if (vocabulary != nullptr) write_hf_files(*vocabulary, directory);
}

void remove_contents(const fs::path& directory) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) fs::remove_all(entry.path(), ignored);
}

}  // namespace

void reorder_model(const Checkpoint& source, const Vocabulary* vocabulary, const Permutation& permutation,
                   const ElasticPlan& plan, const ReorderOptions& options, const fs::path& directory) {
  const ModelSpec& spec = source.spec();
  require_all_halves(spec, "reordering");
  check(permutation, spec);
  check(plan, spec);
  const DType dtype = stored_dtype(source, options);
  if (!fs::is_directory(directory) || !fs::is_empty(directory))
    fail("{}: expected an empty directory", directory.string());
  try {
    // What is small comes first: if it cannot be written, that shows before hours of work.
    write_config(source, dtype, directory);
    write_tokenizer(source, vocabulary, directory);
    save_permutation(permutation, spec, directory / kPermutation);
    save_plan(plan, spec, directory / kPlan);
    write_weights(source, permutation, dtype, options.shard_bytes, directory);
  } catch (...) {
    remove_contents(directory);
    throw;
  }
}

bool is_reordered(const fs::path& directory) {
  // An artifact holds the last two as well.
  return fs::exists(directory / kConfig) && fs::exists(directory / kPermutation) &&
         fs::exists(directory / kPlan);
}

}  // namespace elastify::reorder
