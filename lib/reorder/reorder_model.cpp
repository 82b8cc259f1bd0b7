#include "reorder/reorder_model.h"

#include <future>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/progress.h"
#include "data/companions.h"
#include "io/gguf.h"
#include "io/sharded_safetensors.h"

namespace elastify::reorder {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";
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

/// A tensor that no permutation touches is still a view of the file. Reading one byte of each page loads it.
void read_in(std::span<const std::byte> bytes) {
  constexpr size_t kPage = 4096;
  std::byte all{0};
  for (size_t at = 0; at < bytes.size(); at += kPage) all |= bytes[at];
  [[maybe_unused]] const volatile std::byte kept = all;
}

void write_weights(const Checkpoint& source, const Permutation& permutation, DType dtype,
                   uint64_t shard_bytes, const fs::path& directory) {
  const ModelSpec& spec = source.spec();
  std::vector<TensorInfo> tensors;
  for (const TensorSpec& tensor : spec.tensors) tensors.push_back({tensor.name, dtype, tensor.shape});
  ShardedSafetensorsWriter writer(directory, tensors, {{"format", "pt"}}, shard_bytes);
  Progress progress("reorder", static_cast<int64_t>(spec.tensors.size()), "tensors");
  // While one tensor is hashed and written, the next one is read and permuted.
  const auto prepared = [&](size_t i) {
    return with_context(spec.tensors[i].name, [&] {
      HostTensor tensor = permute(source.load(i, dtype), spec.tensors[i], permutation);
      read_in(tensor.bytes);
      return tensor;
    });
  };
  std::future<HostTensor> next = std::async(std::launch::async, prepared, 0);
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const HostTensor tensor = next.get();
    if (i + 1 < spec.tensors.size()) next = std::async(std::launch::async, prepared, i + 1);
    with_context(spec.tensors[i].name, [&] { writer.write(tensor.bytes); });
    source.release_pages();
    progress.advance(1);
  }
  writer.finish();
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
    Json config = Json::parse(text);  // opening the checkpoint has shown that it is valid JSON
    for (const char* key : {"torch_dtype", "dtype"}) {
      if (config.contains(key)) config[key] = stated;
    }
    text = config.dump(2) + "\n";
  }
  write_text(directory / kConfig, text);
}

/// \returns true if a tokenizer was among the files
bool copy_companions(const fs::path& from, const fs::path& to) {
  const Companions found = find_companions(from);
  for (const auto* names : {&found.tokenizer, &found.model})
    for (const std::string& name : *names) write_text(to / name, read_text(from / name));
  if (fs::exists(from / kTokenizerGguf)) write_text(to / kTokenizerGguf, read_text(from / kTokenizerGguf));
  return found.has_tokenizer;
}

/// Writes a vocabulary-only GGUF file. An export takes from it the keys that config.json and the tokenizer's
/// files cannot hold.
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
    // Small files come first: if one cannot be written, that shows before hours of work.
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
  // plan.json and permutation.h5 alone are not enough: an artifact has them as well.
  return fs::exists(directory / kConfig) && fs::exists(directory / kPermutation) &&
         fs::exists(directory / kPlan);
}

}  // namespace elastify::reorder
