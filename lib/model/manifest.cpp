#include "model/manifest.h"

#include <fmt/format.h>

#include "base/error.h"
#include "model/json_fields.h"
#include "model/plan.h"

namespace elastify {
namespace {

using Json = nlohmann::ordered_json;
using Fields = JsonFields<Json>;

constexpr const char* kFormat = "elastify.artifact";
constexpr int64_t kFormatVersion = 1;
constexpr const char* kHuggingFace = "huggingface";

// Each kind of entry has a writer and a reader. Keys are in the order of the file.

uint64_t require_size(const Fields& fields, const char* key) {
  const int64_t size = fields.require_integer(key);
  if (size < 0) fail("{}: expected 0 or more, got {}", key, size);
  return static_cast<uint64_t>(size);
}

bool require_boolean(const Fields& fields, const char* key) {
  const auto value = fields.boolean(key);
  if (!value) fail("{}: missing", key);
  return *value;
}

Json file_json(const WrittenFile& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}};
}
WrittenFile read_file(const Fields& fields) {
  return {.name = fields.require_string("name"),
          .bytes = require_size(fields, "bytes"),
          .sha256 = fields.require_string("sha256")};
}

/// \param write  turns an entry into JSON
template <typename Entry, typename Write>
Json list_json(const std::vector<Entry>& entries, const Write& write) {
  Json list = Json::array();
  for (const Entry& entry : entries) list.push_back(write(entry));
  return list;
}
/// \param read  turns the fields of one object into an entry; its errors are prefixed with the place in the
///   list
template <typename Read>
auto read_list(const Fields& fields, const char* key, const Read& read) {
  std::vector<decltype(read(fields))> entries;
  for (const Json& entry : fields.require_array(key))
    entries.push_back(
        with_context(fmt::format("{}[{}]", key, entries.size()), [&] { return read(Fields(entry)); }));
  return entries;
}

Json model_json(const ListedModel& model, bool huggingface) {
  Json json{{"name", model.name},
            {"level", model.level},
            {"architecture", model.architecture},
            {"decoder_ratio", model.decoder_ratio},
            {"total_ratio", model.total_ratio},
            {"n_params", model.n_params}};
  if (!huggingface) json["bits_per_weight"] = model.bits_per_weight;
  json["bytes"] = model.bytes;
  if (huggingface)
    json["tokenizer"] = model.tokenizer;
  else
    json["sha256"] = model.sha256;
  json["compensation"] = model.compensation;
  if (huggingface) json["parts"] = list_json(model.parts, file_json);
  return json;
}
ListedModel read_model(const Fields& fields, bool huggingface) {
  ListedModel model;
  model.name = fields.require_string("name");
  model.level = fields.require_number("level");
  model.architecture = fields.require_string("architecture");
  model.decoder_ratio = fields.require_number("decoder_ratio");
  model.total_ratio = fields.require_number("total_ratio");
  model.n_params = fields.require_integer("n_params");
  model.bytes = require_size(fields, "bytes");
  model.compensation = fields.require_string("compensation");
  if (huggingface) {
    model.tokenizer = require_boolean(fields, "tokenizer");
    model.parts = read_list(fields, "parts", read_file);
  } else {
    model.bits_per_weight = fields.require_number("bits_per_weight");
    model.sha256 = fields.require_string("sha256");
  }
  return model;
}

Json adapter_json(const ListedAdapter& adapter, bool huggingface) {
  Json json{{"name", adapter.name}, {"level", adapter.level}, {"n_params", adapter.n_params}};
  if (huggingface) {
    json["bytes"] = adapter.bytes;
    json["parts"] = list_json(adapter.parts, file_json);
    return json;
  }
  json["ranks"] = Json::object();
  for (const auto& [matrix, rank] : adapter.ranks) json["ranks"][matrix] = rank;
  json["bytes"] = adapter.bytes;
  json["sha256"] = adapter.sha256;
  return json;
}
ListedAdapter read_adapter(const Fields& fields, bool huggingface) {
  ListedAdapter adapter;
  adapter.name = fields.require_string("name");
  adapter.level = fields.require_number("level");
  adapter.n_params = fields.require_integer("n_params");
  adapter.bytes = require_size(fields, "bytes");
  if (huggingface) {
    adapter.parts = read_list(fields, "parts", read_file);
    return adapter;
  }
  adapter.sha256 = fields.require_string("sha256");
  const Json& ranks = fields.require("ranks");
  with_context("ranks", [&] {
    const Fields by_matrix(ranks);
    for (const auto& [matrix, rank] : ranks.items())
      adapter.ranks.emplace_back(matrix, by_matrix.require_integer(matrix.c_str()));
  });
  return adapter;
}

Json imatrix_json(const ListedImatrix& imatrix) {
  return {
      {"name", imatrix.name}, {"level", imatrix.level}, {"bytes", imatrix.bytes}, {"sha256", imatrix.sha256}};
}
ListedImatrix read_imatrix(const Fields& fields) {
  return {.name = fields.require_string("name"),
          .level = fields.require_number("level"),
          .bytes = require_size(fields, "bytes"),
          .sha256 = fields.require_string("sha256")};
}

Json folder_json(const ListedFolder& folder) {
  return {{"name", folder.name}, {"type", folder.type}, {"manifest_sha256", folder.manifest_sha256}};
}
ListedFolder read_folder(const Fields& fields) {
  return {.name = fields.require_string("name"),
          .type = fields.require_string("type"),
          .manifest_sha256 = fields.require_string("manifest_sha256")};
}

Json manifest_json(const Manifest& manifest) {
  Json json{{"format", kFormat},
            {"version", kFormatVersion},
            {"tool", {{"name", "elastify"}, {"version", manifest.tool_version}}},
            {"spec_hash", manifest.spec_hash},
            {"permutation_digest", manifest.permutation_digest}};
  if (!manifest.folders.empty()) {
    json["folders"] = list_json(manifest.folders, folder_json);
    return json;
  }
  const bool huggingface = manifest.huggingface;
  if (huggingface) json["layout"] = kHuggingFace;
  json["type"] = manifest.type;
  json["configuration"] = manifest.configuration;
  json["files"] =
      list_json(manifest.files, [&](const auto& model) { return model_json(model, huggingface); });
  if (!manifest.adapters.empty())
    json["adapters"] =
        list_json(manifest.adapters, [&](const auto& adapter) { return adapter_json(adapter, huggingface); });
  if (!manifest.imatrices.empty()) json["imatrices"] = list_json(manifest.imatrices, imatrix_json);
  if (manifest.packed) json["packed"] = file_json(*manifest.packed);
  if (manifest.common) json["common"] = file_json(*manifest.common);
  return json;
}

Manifest read_manifest(const std::string& text) {
  const Json json = parse_json<Json>(text);
  const Fields fields(json);
  if (const std::string format = fields.require_string("format"); format != kFormat)
    fail("format: expected \"{}\", got \"{}\"", kFormat, format);
  if (const int64_t version = fields.require_integer("version"); version != kFormatVersion)
    fail("version: {} is not supported; supported is {}", version, kFormatVersion);
  Manifest manifest;
  const Json& tool = fields.require("tool");
  manifest.tool_version = with_context("tool", [&] { return Fields(tool).require_string("version"); });
  manifest.spec_hash = fields.require_string("spec_hash");
  manifest.permutation_digest = fields.require_string("permutation_digest");
  if (fields.find("folders") != nullptr) {
    manifest.folders = read_list(fields, "folders", read_folder);
    return manifest;
  }
  if (const auto layout = fields.string("layout")) {
    if (*layout != kHuggingFace) fail("layout: expected \"{}\", got \"{}\"", kHuggingFace, *layout);
    manifest.huggingface = true;
  }
  const bool huggingface = manifest.huggingface;
  manifest.type = fields.require_string("type");
  manifest.configuration = fields.require("configuration");
  manifest.files =
      read_list(fields, "files", [&](const Fields& entry) { return read_model(entry, huggingface); });
  if (fields.find("adapters") != nullptr)
    manifest.adapters =
        read_list(fields, "adapters", [&](const Fields& entry) { return read_adapter(entry, huggingface); });
  if (fields.find("imatrices") != nullptr) manifest.imatrices = read_list(fields, "imatrices", read_imatrix);
  for (const auto& [key, file] : {std::pair{"packed", &manifest.packed}, {"common", &manifest.common}})
    if (const Json* entry = fields.find(key))
      *file = with_context(key, [&] { return read_file(Fields(*entry)); });
  return manifest;
}

/// Finds the entry of a level. Levels are compared by name, because nominal levels are read from text.
template <typename Entry>
const Entry* entry_at(const std::vector<Entry>& entries, double level) {
  for (const Entry& entry : entries)
    if (level_name(entry.level) == level_name(level)) return &entry;
  return nullptr;
}

}  // namespace

const ListedModel* Manifest::model_at(double level) const {
  return entry_at(files, level);
}
const ListedAdapter* Manifest::adapter_at(double level) const {
  return entry_at(adapters, level);
}
const ListedImatrix* Manifest::imatrix_at(double level) const {
  return entry_at(imatrices, level);
}

std::string Manifest::storage() const {
  return with_context("manifest.json: configuration",
                      [&] { return Fields(configuration).require_string("storage"); });
}

Manifest manifest_of(const ModelSpec& spec, const Permutation& permutation) {
  Manifest manifest;
  manifest.spec_hash = spec_hash(spec);
  manifest.permutation_digest = digest(permutation);
  return manifest;
}

fs::path manifest_path(const fs::path& artifact) {
  return artifact / "manifest.json";
}

bool has_manifest(const fs::path& artifact) {
  return fs::exists(manifest_path(artifact));
}

Manifest load_manifest(const fs::path& artifact) {
  const fs::path path = manifest_path(artifact);
  const std::string text = read_text(path);
  return with_context(path.string(), [&] { return read_manifest(text); });
}

void save_manifest(const Manifest& manifest, const fs::path& artifact) {
  write_text(manifest_path(artifact),
             manifest_json(manifest).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::vector<std::pair<std::string, Manifest>> load_manifests(const fs::path& artifact) {
  std::vector<std::pair<std::string, Manifest>> manifests;
  Manifest manifest = load_manifest(artifact);
  for (const ListedFolder& folder : manifest.folders)
    manifests.emplace_back(folder.name + "/", load_manifest(artifact / folder.name));
  if (manifest.folders.empty()) manifests.emplace_back("", std::move(manifest));
  return manifests;
}

}  // namespace elastify
