#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/file.h"
#include "io/tensor.h"
#include "model/spec.h"

namespace elastify {

enum class SourceFormat : uint8_t { kHuggingFace, kGguf, kLlama2c };

/// A model's spec and its tensors, read one at a time out of mapped files. Every tensor comes in the spec's
/// shape and in Hugging Face's row order (rotary pairs head_dim/2 apart), whatever the file holds.
class Checkpoint {
 public:
  /// Opens a Hugging Face directory (config.json; one or sharded safetensors; a reordered directory is one
  /// too), a .gguf file (stock ones and our levels: llama, deci, qwen2, qwen3, openelm) or a llama2.c .bin.
  /// Reads headers only, and checks them: every tensor present, of the right shape, nothing unexpected.
  /// \throws Error  naming what was found and what is supported
  static Checkpoint open(const fs::path& path);
  /// The same spec and files seen through `transform`, applied to every tensor as it is loaded.
  Checkpoint transformed(std::function<HostTensor(size_t index, HostTensor)> transform) const;

  const ModelSpec& spec() const { return spec_; }
  SourceFormat format() const { return format_; }
  const fs::path& path() const { return path_; }
  /// All files that make up the model's weights and configuration, for hashing.
  const std::vector<fs::path>& files() const { return files_; }
  /// Further text about the model that outputs carry along: "name" and "license" if the source states them.
  const std::map<std::string, std::string>& description() const { return description_; }

  /// How spec().tensors[index] is stored in the source.
  DType stored_dtype(size_t index) const { return dtypes_[index]; }
  /// The type in which a copy loses nothing: the widest stored float type, or f32 if any tensor is quantised.
  DType lossless_dtype() const;
  /// Loads a tensor in its stored type. It is a view into the mapped file if its rows need no reordering.
  HostTensor load(size_t index) const { return load_(index); }
  HostTensor load(size_t index, DType dtype) const { return convert(load(index), dtype); }

  /// Releases the pages that were read so far, so that they do not count as memory of this process. Views
  /// stay valid; touching them reads the file again.
  void release_pages() const {
    if (release_) release_();
  }

  // For the readers. Eight parameters: every reader knows all of them at once, and none has a default but the
  // last.
  using Load = std::function<HostTensor(size_t index)>;
  Checkpoint(fs::path path, SourceFormat format, ModelSpec spec, std::vector<DType> dtypes,
             std::vector<fs::path> files, std::map<std::string, std::string> description, Load load,
             std::function<void()> release = nullptr);

 private:
  fs::path path_;
  SourceFormat format_;
  ModelSpec spec_;
  std::vector<DType> dtypes_;
  std::vector<fs::path> files_;
  std::map<std::string, std::string> description_;
  Load load_;
  std::function<void()> release_;
};

// The readers behind Checkpoint::open(), one file each.
Checkpoint open_hf_directory(const fs::path& directory);
Checkpoint open_gguf(const fs::path& file);
Checkpoint open_llama2c(const fs::path& file);

/// The config.json with which `transformers` loads the model.
/// \throws Error  if the family's config cannot express the model (per-layer widths, biases that the family
///   does not have)
std::string hf_config_json(const ModelSpec& spec, DType dtype);
/// The config.json of a model whose weights were cut out of another model. It is that model's config.json
/// with new values for the keys that the cut changes (widths, head_dim, biases, architecture) and for the
/// stored type.
/// \throws Error  as hf_config_json()
std::string hf_config_json(const ModelSpec& spec, DType dtype, const std::string& source_config);
/// \throws Error  naming the key at fault
ModelSpec parse_hf_config(const std::string& json);

}  // namespace elastify
