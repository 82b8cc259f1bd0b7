#include "model/checkpoint.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>

#include "base/error.h"
#include "io/gguf.h"
#include "io/llama2c.h"

namespace elastify {
namespace {

constexpr const char* kSupported =
    "supported are Hugging Face directories with safetensors, .gguf files and llama2.c .bin files";
constexpr const char* kToSafetensors =
    "convert it to safetensors: load it in transformers and save_pretrained(safe_serialization=True)";

std::string leading_bytes(const fs::path& path) {
  std::array<char, 8> bytes{};
  std::ifstream file(path, std::ios::binary);
  file.read(bytes.data(), bytes.size());
  return {bytes.data(), static_cast<size_t>(file.gcount())};
}

std::string lower_suffix(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return suffix;
}

[[noreturn]] void refuse(const fs::path& path, std::string_view found, std::string hint) {
  throw Error(fmt::format("{}: this is {}; {}", path.string(), found, kSupported), std::move(hint));
}

/// Names the kind of a file, by its first bytes and then by its suffix.
[[noreturn]] void refuse_file(const fs::path& path, const std::string& magic) {
  const std::string suffix = lower_suffix(path);
  if (suffix == ".safetensors" || suffix == ".json")
    refuse(path, "one file of a Hugging Face directory", "give the directory that holds it and config.json");
  if (suffix == ".onnx")
    refuse(path, "an ONNX graph", "use the safetensors of the model that it was exported from");
  if (magic.starts_with("PK\3\4") || magic.starts_with("\x80\x02") || magic.starts_with("\x80\x04"))
    refuse(path, "a PyTorch pickle", kToSafetensors);
  if (suffix == ".pt" || suffix == ".pth" || suffix == ".ckpt")
    refuse(path, "a PyTorch file", kToSafetensors);
  if (magic.starts_with("lmgg") || magic.starts_with("tjgg") || magic.starts_with("fmgg"))
    refuse(path, "a ggml file from before GGUF", "convert it with llama.cpp's convert_llama_ggml_to_gguf.py");
  if (magic.starts_with("\x89HDF"))
    refuse(path, "an HDF5 file", "give the model, not a profile or permutation");
  if (magic.ends_with("TFL3")) refuse(path, "a TensorFlow Lite graph", {});
  if (magic.empty()) fail("{}: the file is empty; {}", path.string(), kSupported);
  fail("{}: not a known kind of model file; {}", path.string(), kSupported);
}

}  // namespace

Checkpoint::Checkpoint(fs::path path, SourceFormat format, ModelSpec spec, std::vector<DType> dtypes,
                       std::vector<fs::path> files, std::map<std::string, std::string> description, Load load,
                       std::function<void()> release)
    : path_(std::move(path)),
      format_(format),
      spec_(std::move(spec)),
      dtypes_(std::move(dtypes)),
      files_(std::move(files)),
      description_(std::move(description)),
      load_(std::move(load)),
      release_(std::move(release)) {}

Checkpoint Checkpoint::open(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    const std::string text = path.string();
    const bool like_hub_name = path.is_relative() && std::count(text.begin(), text.end(), '/') == 1;
    throw Error(fmt::format("{}: no such file or directory", text),
                like_hub_name ? "models are not downloaded; give the path of a local copy" : "");
  }
  if (fs::is_directory(path)) return open_hf_directory(path);
  if (!fs::is_regular_file(path)) fail("{}: expected a file or a directory", path.string());
  if (GgufFile::has_magic(path) || lower_suffix(path) == ".gguf") return open_gguf(path);
  const std::string magic = leading_bytes(path);
  const bool pickle = magic.starts_with("PK\3\4") || magic.starts_with("\x80\x02");
  if (Llama2cFile::matches(path) || (lower_suffix(path) == ".bin" && !pickle && !magic.empty()))
    return open_llama2c(path);
  refuse_file(path, magic);
}

Checkpoint Checkpoint::transformed(std::function<HostTensor(size_t, HostTensor)> transform) const {
  Checkpoint other = *this;
  other.load_ = [load = load_, transform = std::move(transform)](size_t index) {
    return transform(index, load(index));
  };
  return other;
}

DType Checkpoint::lossless_dtype() const {
  DType widest = dtypes_.at(0);
  for (const DType dtype : dtypes_) {
    if (!is_float(dtype) || dtype != widest) return DType::kF32;
  }
  return is_float(widest) ? widest : DType::kF32;
}

}  // namespace elastify
