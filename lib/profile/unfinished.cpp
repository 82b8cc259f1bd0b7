#include "profile/unfinished.h"

#include <torch/torch.h>

#include <algorithm>

#include "base/error.h"
#include "io/hdf5.h"

namespace elastify::profile {
namespace {

constexpr const char* kStamp = "key";

bool is_symmetric(const std::string& name) {
  return name.ends_with("/moments");
}

/// Whether the directory has nothing but the unfinished work of one process or of several.
bool is_own(const fs::path& directory) {
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    const bool known = name == kStamp || name == "hidden" || name == "gradients" || name == "streams" ||
                       name.starts_with("process-") || name.ends_with(".h5") ||
                       name.find(".tmp-") != std::string::npos;
    if (!known) return false;
  }
  return true;
}

void require_own(const fs::path& directory) {
  if (fs::exists(directory) && !is_own(directory))
    throw UsageError(fmt::format("{}: unfinished work goes here, but it contains what elastify did not write",
                                 directory.string()),
                     "move it away, or choose another -o");
}

}  // namespace

Unfinished::Unfinished(const fs::path& directory, const std::string& key, WorkOptions::Existing existing)
    : directory_(directory) {
  require_own(directory);
  if (directory.filename().string().starts_with("process-")) require_own(directory.parent_path());
  const fs::path stamp = directory / kStamp;
  if (fs::exists(stamp)) {
    const bool same = read_text(stamp) == key;
    if (existing == WorkOptions::Existing::kRefuse)
      throw UsageError(fmt::format("{}: holds unfinished work", directory.string()),
                       "--resume goes on with it, --force starts over");
    if (same && existing != WorkOptions::Existing::kReplace) return;
    if (existing == WorkOptions::Existing::kResume)
      throw UsageError(fmt::format("{}: the unfinished work there was started with another model, other data "
                                   "or other options",
                                   directory.string()),
                       "give the same as then, or start over with --force");
  }
  std::error_code error;
  fs::remove_all(directory, error);
  if (!fs::create_directories(directory, error))
    fail("{}: cannot make the directory: {}", directory.string(), error.message());
  write_text(stamp, key);
}

bool Unfinished::has(const std::string& part) const {
  return is_kept() && fs::exists(file(part));
}

void Unfinished::save(const std::string& part, std::span<LayerStatistics* const> layers,
                      const Numbers& numbers) const {
  if (!is_kept()) return;
  Hdf5Writer writer(file(part));
  for (const auto& [name, values] : numbers)
    writer.write("/numbers/" + name, std::span<const double>(values));
  for (size_t l = 0; l < layers.size(); ++l)
    layers[l]->for_each([&](const std::string& name, at::Tensor& tensor) {
      const std::span<const double> values(tensor.data_ptr<double>(), static_cast<size_t>(tensor.numel()));
      const std::string place = fmt::format("/layers/{}/{}", l, name);
      if (is_symmetric(name))
        writer.write_symmetric(place, values, tensor.size(0));
      else
        writer.write(place, values);
    });
  writer.commit();
}

Unfinished::Numbers Unfinished::load(const std::string& part,
                                     std::span<LayerStatistics* const> layers) const {
  const Hdf5Reader reader(file(part));
  for (size_t l = 0; l < layers.size(); ++l)
    layers[l]->for_each([&](const std::string& name, at::Tensor& tensor) {
      const std::string place = fmt::format("/layers/{}/{}", l, name);
      if (!reader.contains(place)) return;
      const std::vector<double> values =
          is_symmetric(name) ? reader.symmetric(place, tensor.size(0)) : reader.doubles(place);
      if (static_cast<int64_t>(values.size()) != tensor.numel())
        throw Error(fmt::format("{}: {}: expected {} values, got {}", file(part).string(), place,
                                tensor.numel(), values.size()),
                    "start over with --force");
      std::copy(values.begin(), values.end(), tensor.data_ptr<double>());
    });
  Numbers numbers;
  for (const std::string& name : reader.list("/numbers")) numbers[name] = reader.doubles("/numbers/" + name);
  return numbers;
}

void Unfinished::discard() const {
  if (!is_kept()) return;
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

}  // namespace elastify::profile
