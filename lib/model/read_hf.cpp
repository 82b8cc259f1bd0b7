#include <algorithm>
#include <cstring>
#include <optional>

#include <fmt/ranges.h>

#include "base/error.h"
#include "io/safetensors.h"
#include "model/checkpoint.h"
#include "model/json_fields.h"
#include "model/tensor_match.h"

namespace elastify {
namespace {

constexpr const char* kConfig = "config.json";
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// The weight files of a directory, and the file of each tensor.
struct Shards {
  std::vector<SafetensorsFile> files;
  std::vector<fs::path> paths;
  std::vector<TensorInfo> tensors;
  std::map<std::string, size_t, std::less<>> file_of;

  void add(const fs::path& path, const SafetensorsFile& file) {
    paths.push_back(path);
    files.push_back(file);
  }
  void add_tensor(const TensorInfo& tensor, size_t file) {
    file_of.emplace(tensor.name, file);
    tensors.push_back(tensor);
  }
  HostTensor load(const std::string& name) const { return files[file_of.find(name)->second].tensor(name); }
};

std::vector<std::string> file_names(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory, fs::directory_options::skip_permission_denied))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<std::string> find_file(const std::vector<std::string>& names, std::string_view prefix,
                                     std::initializer_list<std::string_view> suffixes) {
  for (const std::string& name : names) {
    for (const std::string_view suffix : suffixes) {
      if (name.starts_with(prefix) && name.ends_with(suffix)) return name;
    }
  }
  return std::nullopt;
}

[[noreturn]] void refuse_without_config(const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), "adapter_config.json") != names.end())
    throw Error("holds a LoRA adapter, expected a model", "merge the adapter into its model first");
  if (const auto gguf = find_file(names, "", {".gguf"}))
    throw Error("no config.json in this directory", fmt::format("give the GGUF file itself, {}", *gguf));
  throw Error("no config.json in this directory",
              "a Hugging Face model has config.json and model.safetensors side by side");
}

[[noreturn]] void refuse_without_weights(const std::vector<std::string>& names) {
  const auto pickle = find_file(names, "", {".bin", ".pt", ".pth", ".ckpt"});
  if (pickle && !pickle->starts_with("tok"))
    throw Error(
        fmt::format("expected {} or {}, found only {}, a PyTorch pickle", kWeights, kIndex, *pickle),
        "convert it to safetensors: load it in transformers and save_pretrained(safe_serialization=True)");
  if (const auto other = find_file(names, "", {".safetensors"}))
    throw Error(fmt::format("expected {} or {}, found {}", kWeights, kIndex, *other),
                fmt::format("rename the file to {}, or restore the index", kWeights));
  fail("neither {} nor {} in this directory", kWeights, kIndex);
}

Shards open_index(const fs::path& directory) {
  using Json = nlohmann::json;
  const Json json = parse_json<Json>(read_text(directory / kIndex));
  const Json& weight_map = JsonFields<Json>(json).require("weight_map");
  if (!weight_map.is_object())
    fail("weight_map: expected an object, got {}", JsonFields<Json>::shown(weight_map));

  Shards shards;
  std::map<std::string, size_t> index_of;
  for (const auto& [tensor, value] : weight_map.items()) {
    const std::string name = JsonFields<Json>::to_string(tensor, value);
    if (name.empty() || fs::path(name).filename() != name || name == "." || name == "..")
      fail("{}: expected the name of a file in the same directory, got \"{}\"", tensor, name);
    if (index_of.emplace(name, index_of.size()).second) {
      if (!fs::exists(directory / name))
        throw Error(fmt::format("shard {} is missing", name), "download or copy the model again");
      shards.add(directory / name,
                 with_context(name, [&] { return SafetensorsFile::open(directory / name); }));
    }
  }

  std::vector<std::map<std::string_view, const TensorInfo*>> held(shards.files.size());
  for (size_t i = 0; i < held.size(); ++i) {
    for (const TensorInfo& tensor : shards.files[i].tensors()) held[i].emplace(tensor.name, &tensor);
  }
  for (const auto& [tensor, value] : weight_map.items()) {
    const std::string name = value.get<std::string>();
    const size_t file = index_of.at(name);
    const auto place = held[file].find(tensor);
    if (place == held[file].end())
      fail("the index says that {} is in {}, which does not have it", tensor, name);
    shards.add_tensor(*place->second, file);
  }
  return shards;
}

Shards open_shards(const fs::path& directory, const std::vector<std::string>& names) {
  const auto has = [&](std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (has(kWeights)) {
    Shards shards;
    shards.add(directory / kWeights, SafetensorsFile::open(directory / kWeights));
    for (const TensorInfo& tensor : shards.files[0].tensors()) shards.add_tensor(tensor, 0);
    return shards;
  }
  if (has(kIndex)) return with_context(kIndex, [&] { return open_index(directory); });
  refuse_without_weights(names);
}

/// A tied model's file may repeat the embedding as lm_head.weight. Loaders disagree on which one to use if
/// the two differ, so this is refused.
void require_same_output(const Shards& shards, const ModelSpec& spec) {
  if (!spec.tied || !shards.file_of.contains("lm_head.weight")) return;
  const std::string& embedding_name =
      spec.tensors[static_cast<size_t>(spec.find(Role::kTokenEmbedding))].name;
  const HostTensor output = shards.load("lm_head.weight");
  const HostTensor embedding = shards.load(embedding_name);
  const bool same = output.dtype == embedding.dtype && output.shape == embedding.shape &&
                    std::memcmp(output.bytes.data(), embedding.bytes.data(), output.bytes.size()) == 0;
  if (!same)
    throw Error("config.json says tie_word_embeddings, but lm_head.weight differs from the embedding",
                "set \"tie_word_embeddings\": false in config.json if the model has its own output weights");
}

/// "license" of the model card's front matter: lines "key: value" between two "---".
std::map<std::string, std::string> read_card(const fs::path& directory) {
  std::map<std::string, std::string> description;
  const fs::path path = directory / "README.md";
  if (!fs::is_regular_file(path) || fs::file_size(path) > (1U << 20)) return description;
  const std::string text = read_text(path);
  if (!text.starts_with("---\n")) return description;
  const std::string_view front = std::string_view(text).substr(0, text.find("\n---", 3) + 1);
  const std::string_view key = "\nlicense:";
  const size_t begin = front.find(key);
  if (begin == std::string_view::npos) return description;
  std::string_view value = front.substr(begin + key.size());
  value = value.substr(0, value.find('\n'));
  const auto is_padding = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '"' || c == '\''; };
  while (!value.empty() && is_padding(value.front())) value.remove_prefix(1);
  while (!value.empty() && is_padding(value.back())) value.remove_suffix(1);
  if (!value.empty()) description["license"] = value;
  return description;
}

bool is_harmless(const ModelSpec& spec, const std::string& name) {
  return name.ends_with("rotary_emb.inv_freq") || (spec.tied && name == "lm_head.weight");
}

}  // namespace

Checkpoint open_hf_directory(const fs::path& directory) {
  return with_context(directory.string(), [&] {
    const std::vector<std::string> names = file_names(directory);
    if (std::find(names.begin(), names.end(), kConfig) == names.end()) refuse_without_config(names);
    ModelSpec spec = with_context(kConfig, [&] { return parse_hf_config(read_text(directory / kConfig)); });
    auto shards = std::make_shared<const Shards>(open_shards(directory, names));

    std::vector<TensorInfo> expected;
    for (const TensorSpec& tensor : spec.tensors)
      expected.push_back({tensor.name, DType::kF32, tensor.shape});
    require_match(expected, shards->tensors,
                  [&](const std::string& name) { return is_harmless(spec, name); });
    require_same_output(*shards, spec);

    std::vector<DType> dtypes;
    for (const TensorSpec& tensor : spec.tensors) dtypes.push_back(shards->load(tensor.name).dtype);
    std::vector<fs::path> files{directory / kConfig};
    if (!fs::exists(directory / kWeights)) files.push_back(directory / kIndex);
    files.insert(files.end(), shards->paths.begin(), shards->paths.end());

    std::vector<std::string> tensor_names;
    for (const TensorSpec& tensor : spec.tensors) tensor_names.push_back(tensor.name);
    return Checkpoint(
        directory, SourceFormat::kHuggingFace, std::move(spec), std::move(dtypes), std::move(files),
        read_card(directory),
        [shards, tensor_names](size_t index) { return shards->load(tensor_names.at(index)); },
        [shards] {
          for (const auto& file : shards->files) file.release_pages();
        });
  });
}

}  // namespace elastify
