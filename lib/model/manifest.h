#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/version.h"
#include "io/sharded_safetensors.h"
#include "model/permutation.h"

namespace elastify {

/// A model of an artifact: a GGUF file, or a Hugging Face directory, whose files are its parts.
struct ListedModel {
  std::string name;  ///< "level-050.gguf", "level-050"
  double level = 1;  ///< nominal
  std::string architecture;
  double decoder_ratio = 1, total_ratio = 1;
  int64_t n_params = 0;
  double bits_per_weight = 0;  ///< of the tensors' data; GGUF files only
  uint64_t bytes = 0;
  std::string sha256;                 ///< GGUF files only
  bool tokenizer = false;             ///< the directory has one; Hugging Face only
  std::string compensation = "none";  ///< of the level, its adapter included
  std::vector<WrittenFile> parts;     ///< named relative to the artifact; Hugging Face only
};

/// A level's adapter: a GGUF file, or a directory in PEFT's layout.
struct ListedAdapter {
  std::string name;  ///< "lora-050.gguf", "lora-050"
  double level = 1;
  int64_t n_params = 0;
  std::vector<std::pair<std::string, int64_t>> ranks;  ///< by matrix; GGUF files only
  uint64_t bytes = 0;
  std::string sha256;              ///< GGUF files only
  std::vector<WrittenFile> parts;  ///< Hugging Face only
};

/// An importance matrix beside a model's file.
struct ListedImatrix {
  std::string name;  ///< "imatrix-050.gguf"
  double level = 1;
  uint64_t bytes = 0;
  std::string sha256;
};

/// One of several artifacts that were written together, each in its own folder.
struct ListedFolder {
  std::string name;  ///< "q8_0"
  std::string type;
  std::string manifest_sha256;  ///< of its manifest.json
};

/// manifest.json, which lists the files of an artifact; docs/formats.md has its keys. A manifest with
/// `folders` lists the artifacts of several types, and everything from `huggingface` on is empty.
struct Manifest {
  std::string tool_version{kVersion};
  std::string spec_hash, permutation_digest;  ///< of the source model and of the order of its units
  std::vector<ListedFolder> folders;

  bool huggingface = false;  ///< Hugging Face directories instead of GGUF files
  std::string type;          ///< "f16", "q4_k_m"
  nlohmann::ordered_json configuration = nlohmann::ordered_json::object();  ///< resolved options
  std::vector<ListedModel> files;  ///< the full model first, then the levels from wide to narrow
  std::vector<ListedAdapter> adapters;
  std::vector<ListedImatrix> imatrices;
  std::optional<WrittenFile> packed;  ///< the file that holds `files`, which then do not exist separately
  std::optional<WrittenFile> common;  ///< the tensors that all `files` share

  // By nominal level; null where nothing is listed for it.
  const ListedModel* model_at(double level) const;
  const ListedAdapter* adapter_at(double level) const;
  const ListedImatrix* imatrix_at(double level) const;

  /// The type of the reordered directory's tensors, which the configuration states as `storage`.
  /// \throws Error  naming the key if it is not there
  std::string storage() const;
};

/// A manifest that lists nothing yet, of what is made from a model whose units are in this order.
Manifest manifest_of(const ModelSpec& spec, const Permutation& permutation);

/// manifest.json in the artifact's directory.
fs::path manifest_path(const fs::path& artifact);
bool has_manifest(const fs::path& artifact);
/// \throws Error  naming file and key
Manifest load_manifest(const fs::path& artifact);
void save_manifest(const Manifest& manifest, const fs::path& artifact);

/// The manifests of an artifact, each with the folder that its names are relative to: "" for the artifact's
/// own manifest, or "q8_0/" and so on for those of its folders.
/// \throws Error  as load_manifest()
std::vector<std::pair<std::string, Manifest>> load_manifests(const fs::path& artifact);

}  // namespace elastify
