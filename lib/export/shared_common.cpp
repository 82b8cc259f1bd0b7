#include "export/shared_common.h"

#include <cstring>

#include "base/error.h"
#include "base/progress.h"
#include "io/gguf.h"

// Writes splits as stock llama.cpp loads them: src/llama-model-loader.cpp. The first part has all keys of the
// model. llama.cpp reads only split.no of the second part. The types of the three keys are part of the
// format.

namespace elastify::exporter {
namespace {

constexpr const char* kCommon = "common.gguf";
constexpr std::string_view kFirst = "-00001-of-00002.gguf", kSecond = "-00002-of-00002.gguf";

/// The output norm is not shared: it is small, and a level may have its own.
bool is_common(const TensorInfo& tensor) {
  return !tensor.name.starts_with("blk.") && tensor.name != "output_norm.weight";
}

std::vector<TensorInfo> select(const GgufFile& file, bool common) {
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& tensor : file.tensors())
    if (is_common(tensor) == common) tensors.push_back(tensor);
  return tensors;
}

std::string write(const fs::path& path, const GgufMetadata& keys, const std::vector<TensorInfo>& tensors,
                  const GgufFile& from, uint64_t& size) {
  GgufWriter writer(path, keys, tensors);
  for (const TensorInfo& tensor : tensors) {
    check_interrupt();
    writer.write(from.tensor(tensor.name).bytes);
    from.release_pages();  // keeps memory bounded
  }
  std::string sha256 = writer.finish();
  size = writer.size();
  return sha256;
}

/// \throws Error  unless the level's tensors outside of the layers equal the full model's
void require_common(const GgufFile& full, const GgufFile& level) {
  const std::vector<TensorInfo> expected = select(full, true), found = select(level, true);
  for (const TensorInfo& tensor : found)
    if (!full.contains(tensor.name)) fail("{}: the full model has no such tensor", tensor.name);
  for (const TensorInfo& tensor : expected) {
    if (!level.contains(tensor.name)) fail("{}: the level has no such tensor", tensor.name);
    const HostTensor a = full.tensor(tensor.name), b = level.tensor(tensor.name);
    if (a.dtype != b.dtype || a.shape != b.shape ||
        std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) != 0)
      throw Error(fmt::format("{}: differs from the full model's", tensor.name),
                  "export without --shared-common");
    full.release_pages();
    level.release_pages();
  }
}

void link_common(const fs::path& link) {
  std::error_code error;
  fs::create_symlink(kCommon, link, error);
  if (error) fs::copy_file(link.parent_path() / kCommon, link);
}

}  // namespace

void share_common(const fs::path& directory, Manifest& manifest) {
  const GgufFile full = GgufFile::open(directory / "full.gguf");
  GgufMetadata common_keys;
  common_keys.set("general.architecture", full.metadata().require_string("general.architecture"));
  common_keys.set("split.no", uint16_t{1});
  WrittenFile& common = manifest.common.emplace(WrittenFile{.name = kCommon, .bytes = 0, .sha256 = {}});
  common.sha256 = write(directory / kCommon, common_keys, select(full, true), full, common.bytes);
  for (ListedModel& entry : manifest.files) {
    const std::string name = entry.name;
    const std::string stem = fs::path(name).stem().string();
    const GgufFile file = GgufFile::open(directory / name);
    with_context(name, [&] { require_common(full, file); });
    GgufMetadata keys = file.metadata();
    keys.set("split.no", uint16_t{0});
    keys.set("split.count", uint16_t{2});
    keys.set("split.tensors.count", static_cast<int32_t>(file.tensors().size()));
    const std::string first = stem + std::string(kFirst);
    entry.sha256 = write(directory / first, keys, select(file, false), file, entry.bytes);
    entry.name = first;
    link_common(directory / (stem + std::string(kSecond)));
  }
  for (const ListedModel& entry : manifest.files) {
    std::string name = entry.name;
    fs::remove(directory / name.replace(name.size() - kFirst.size(), kFirst.size(), ".gguf"));
  }
}

}  // namespace elastify::exporter
