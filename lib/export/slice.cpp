#include "export/slice.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/progress.h"
#include "export/level_repairs.h"

namespace elastify::exporter {
namespace {

/// A tensor of a level's file and the stored tensors whose leading parts it consists of: one, or q, k and v
/// if fused.
struct SlicedTensor {
  TensorInfo info;
  std::vector<KeptTensor> kept;
};

constexpr std::string_view kFusedStem = "attn_qkv.weight";

HostTensor stored(const PackedFile& packed, const LevelPart& part, const KeptTensor& kept) {
  return kept.own ? part.file.tensor(kept.name) : packed.model().tensor(kept.name);
}

std::vector<SlicedTensor> sliced_tensors(const PackedFile& packed, const LevelPart& part) {
  std::vector<SlicedTensor> tensors;
  for (const KeptTensor& kept : part.tensors) {
    const DType dtype = stored(packed, part, kept).dtype;
    const bool query = kept.name.ends_with(".attn_q.weight"), key = kept.name.ends_with(".attn_k.weight"),
               value = kept.name.ends_with(".attn_v.weight");
    if (!part.fused_qkv || !(query || key || value)) {
      tensors.push_back({{kept.name, dtype, kept.shape}, {kept}});
      continue;
    }
    const std::string fused = kept.name.substr(0, kept.name.rfind("attn_")) + std::string(kFusedStem);
    if (query) {
      tensors.push_back({{fused, dtype, kept.shape}, {kept}});
      continue;
    }
    if (tensors.empty() || tensors.back().info.name != fused || tensors.back().kept.size() != (key ? 1 : 2) ||
        tensors.back().info.dtype != dtype || tensors.back().info.shape[1] != kept.shape[1])
      fail("{}: {}: expected q, k and v of one type and width in this order", packed.path().string(),
           kept.name);
    tensors.back().info.shape[0] += kept.shape[0];
    tensors.back().kept.push_back(kept);
  }
  return tensors;
}

/// The level's leading part of a stored tensor, with rows in the order of the level's file.
HostTensor load(const PackedFile& packed, const LevelPart& part, const KeptTensor& kept) {
  const HostTensor prefix = leading(stored(packed, part, kept), kept.shape);
  if (kept.own || !is_rotary_name(kept.name)) return prefix;
  return reorder_rope_rows(prefix, packed.head_dim(), packed.rope(), part.rope);
}

/// The keys of the level's file, in its order: its own come from the part, the others from the model.
GgufMetadata level_keys(const PackedFile& packed, const LevelPart& part) {
  const std::string list = fmt::format("{}keys", kPartPrefix);
  const auto* names = part.file.metadata().strings(list);
  if (names == nullptr) fail("{}: key {} is missing", packed.path().string(), list);
  GgufMetadata keys;
  for (const std::string& name : *names) {
    const GgufValue* value = part.file.metadata().find(name);
    if (value == nullptr) value = packed.model().metadata().find(name);
    if (value == nullptr)
      fail("{}: key {}: it is in neither the model nor the part", packed.path().string(), name);
    keys.set(name, *value);
  }
  return keys;
}

std::string write_full(const PackedFile& packed, const PackedLevel& level, const fs::path& output) {
  GgufMetadata keys;
  for (const auto& [key, value] : packed.model().metadata().entries())
    if (!key.starts_with(kPackedPrefix)) keys.set(key, value);
  GgufWriter writer(output, keys, packed.model().tensors());
  for (const TensorInfo& tensor : packed.model().tensors()) {
    check_interrupt();
    writer.write(packed.model().tensor(tensor.name).bytes);
    packed.model().release_pages();  // keeps memory bounded
  }
  return writer.finish(level.sha256);
}

/// A level's adapters, by the name of the matrix in the level's file.
class Adapter {
 public:
  Adapter(const PackedFile& packed, const EmbeddedFile& place) : file_(packed.open_embedded(place)) {
    packed.check_hash(place);
    alpha_ = static_cast<float>(file_.metadata().require_number("adapter.lora.alpha"));
    for (const TensorInfo& tensor : file_.tensors())
      if (const size_t dot = tensor.name.rfind('.'); tensor.name.ends_with(".lora_a"))
        used_.emplace(tensor.name.substr(0, dot), false);
  }

  /// Adds the adapter to rows of a matrix; none if the matrix has no adapter.
  /// \param matrix  of the level's file
  /// \param rows  from row `first` on
  /// \throws Error  naming the shapes
  std::optional<HostTensor> merged(const TensorInfo& matrix, const HostTensor& rows, int64_t first) {
    const auto found = used_.find(matrix.name);
    if (found == used_.end()) return std::nullopt;
    found->second = true;
    const HostTensor a = convert(file_.tensor(matrix.name + ".lora_a"), DType::kF32),
                     b = convert(file_.tensor(matrix.name + ".lora_b"), DType::kF32);
    if (a.shape.size() != 2 || b.shape.size() != 2 || matrix.shape.size() != 2 || a.shape[0] != b.shape[1] ||
        b.shape[0] != matrix.shape[0] || a.shape[1] != matrix.shape[1])
      fail("{}: shape {} has no adapter of shapes {} and {}", matrix.name, to_string(matrix.shape),
           to_string(a.shape), to_string(b.shape));
    HostTensor sum = HostTensor::allocate(DType::kF32, rows.shape);
    const HostTensor weight = convert(rows, DType::kF32);
    std::memcpy(sum.writable().data(), weight.bytes.data(), weight.bytes.size());
    const auto* left = reinterpret_cast<const float*>(b.bytes.data()) + first * b.shape[1];
    add_product(a, left, rows.shape[0], reinterpret_cast<float*>(sum.writable().data()));
    return convert(sum, rows.dtype);
  }

  void require_used() const {
    for (const auto& [name, used] : used_)
      if (!used) fail("the adapter has a matrix for {}, which the level does not have", name);
  }

  /// Names of the adapted matrices. A fused qkv is listed as q, k and v.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, used] : used_) {
      if (!name.ends_with(kFusedStem)) {
        names.push_back(name);
        continue;
      }
      for (const char* part : {"attn_q.weight", "attn_k.weight", "attn_v.weight"})
        names.push_back(name.substr(0, name.size() - kFusedStem.size()) + part);
    }
    return names;
  }

 private:
  /// Adds alpha / rank times `left` times `a` to `target`.
  /// \param left  [rows, rank]
  void add_product(const HostTensor& a, const float* left, int64_t rows, float* target) const {
    const int64_t rank = a.shape[0], columns = a.shape[1];
    const auto* right = reinterpret_cast<const float*>(a.bytes.data());
    const float scale = alpha_ == 0 ? 1 : alpha_ / static_cast<float>(rank);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t r = 0; r < rank; ++r) {
        const float factor = scale * left[i * rank + r];
        for (int64_t j = 0; j < columns; ++j) target[i * columns + j] += factor * right[r * columns + j];
      }
  }

  GgufFile file_;
  float alpha_ = 0;
  std::map<std::string, bool> used_;
};

/// States in the keys that the adapter is merged into the level's weights: see kRepairsKey and
/// kOwnTensorsKey.
void state_merged(const Adapter& adapter, GgufMetadata& keys) {
  const Compensation held = parts_named(keys.string(kRepairsKey).value_or(""));
  keys.set(kRepairsKey, name_of(held | Compensation::kBaked));
  std::vector<std::string> own;
  if (const auto* names = keys.strings(kOwnTensorsKey)) own = *names;
  for (std::string& name : adapter.names()) {
    const bool usual = name.ends_with(".attn_output.weight") || name.ends_with(".ffn_down.weight");
    if (!usual && std::find(own.begin(), own.end(), name) == own.end()) own.push_back(std::move(name));
  }
  if (!own.empty()) keys.set(kOwnTensorsKey, GgufArray{std::move(own)});
  keys.set("elastify.merged_adapter", true);
}

std::string write_level(const PackedFile& packed, const PackedLevel& level, const fs::path& output,
                        Adapter* adapter) {
  packed.check_hash(packed.embedded()[*level.part]);
  const LevelPart part = packed.part_of(level);
  const std::vector<SlicedTensor> tensors = sliced_tensors(packed, part);
  GgufMetadata keys = level_keys(packed, part);
  if (adapter != nullptr) state_merged(*adapter, keys);
  std::vector<TensorInfo> infos;
  for (const SlicedTensor& tensor : tensors) infos.push_back(tensor.info);
  GgufWriter writer(output, keys, std::move(infos));
  for (const SlicedTensor& tensor : tensors) {
    check_interrupt();
    int64_t first = 0;
    for (const KeptTensor& kept : tensor.kept) {
      HostTensor data = load(packed, part, kept);
      if (adapter != nullptr)
        if (auto merged = adapter->merged(tensor.info, data, first)) data = std::move(*merged);
      writer.write(data.bytes);
      first += kept.shape[0];
    }
    packed.model().release_pages();
  }
  if (adapter != nullptr) adapter->require_used();
  return writer.finish(adapter == nullptr ? level.sha256 : "");
}

}  // namespace

std::string slice(const PackedFile& packed, const PackedLevel& level, const fs::path& output) {
  return level.part ? write_level(packed, level, output, nullptr) : write_full(packed, level, output);
}

std::string slice_merged(const PackedFile& packed, const PackedLevel& level, const fs::path& output) {
  if (!level.adapter)
    throw UsageError(fmt::format("{}: level {} has no adapter", packed.path().string(), level.nominal),
                     "leave --merge-adapter out");
  return with_context(packed.path().string(), [&] {
    Adapter adapter(packed, packed.embedded()[*level.adapter]);
    return write_level(packed, level, output, &adapter);
  });
}

void extract(const PackedFile& packed, const EmbeddedFile& file, const fs::path& output) {
  packed.check_hash(file);
  AtomicFile target(output);
  target.write(packed.bytes_of(file));
  target.commit();
}

void unpack(const PackedFile& packed, const fs::path& directory) {
  for (const PackedLevel& level : packed.levels()) {
    slice(packed, level, directory / level.name);
    for (const auto index : {level.adapter, level.imatrix})
      if (index) extract(packed, packed.embedded()[*index], directory / packed.embedded()[*index].name);
  }
}

}  // namespace elastify::exporter
