#include "export/pack.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "base/error.h"
#include "base/progress.h"
#include "export/gguf_metadata.h"

namespace elastify::exporter {
namespace {

constexpr size_t kCopiedAtOnce = size_t{1} << 24;
constexpr std::string_view kFused = ".attn_qkv.weight";

std::string with_prefix(std::string_view prefix, std::string_view name) {
  return fmt::format("{}{}", prefix, name);
}

/// Whether both values are written as the same bytes.
bool same_value(const GgufValue& a, const GgufValue& b) {
  if (a.index() != b.index()) return false;
  return std::visit(
      [&](const auto& value) {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, GgufArray>)
          return value.values == std::get<T>(b).values;
        else
          return value == std::get<T>(b);
      },
      a);
}

class PartPlan {
 public:
  PartPlan(const PlainFile& full, const PlainFile& level, const std::set<std::string>& replaced)
      : full_(full), level_(level), replaced_(replaced) {}

  PartHeader run() {
    for (const TensorInfo& tensor : level_.tensors) place(tensor);
    std::vector<std::string> order;
    for (const auto& [key, value] : level_.keys.entries()) {
      order.push_back(key);
      const GgufValue* shared = full_.keys.find(key);
      if (shared == nullptr || !same_value(*shared, value)) part_.keys.set(key, value);
    }
    part_.keys.set(with_prefix(kPartPrefix, "keys"), GgufArray{std::move(order)});
    part_.keys.set(with_prefix(kPartPrefix, "rope"), std::string(name_of(level_.architecture->rope)));
    part_.keys.set(with_prefix(kPartPrefix, "fused_qkv"), fused_);
    part_.keys.set(with_prefix(kPartPrefix, "tensors"), GgufArray{std::move(names_)});
    part_.keys.set(with_prefix(kPartPrefix, "shapes"), GgufArray{std::move(shapes_)});
    return std::move(part_);
  }

 private:
  /// Whether the full model's file has this tensor as a leading part, up to the order of rows inside heads.
  bool is_prefix(const std::string& name, DType dtype, const Shape& shape) const {
    if (replaced_.count(name) > 0) return false;
    const auto whole = std::find_if(full_.tensors.begin(), full_.tensors.end(),
                                    [&](const TensorInfo& t) { return t.name == name; });
    if (whole == full_.tensors.end() || whole->dtype != dtype || whole->shape.size() != shape.size())
      return false;
    if (name.ends_with(kFused)) return whole->shape == shape;  // leading rows of q | k | v are only q
    for (size_t axis = 0; axis < shape.size(); ++axis)
      if (shape[axis] > whole->shape[axis]) return false;
    return true;
  }

  void add(const std::string& name, const Shape& shape) {
    names_.push_back(name);
    shapes_.push_back(shape.back());
    shapes_.push_back(shape.size() > 1 ? shape[0] : 0);
  }

  void place(const TensorInfo& tensor) {
    if (tensor.name.ends_with(kFused) && is_fusion_of_prefixes(tensor)) {
      for (const TensorSpec* part : fused_in(tensor)) add(part->gguf_name, part->shape);
      fused_ = true;
      return;
    }
    if (!is_prefix(tensor.name, tensor.dtype, tensor.shape)) part_.tensors.push_back(tensor);
    add(tensor.name, tensor.shape);
  }

  std::vector<const TensorSpec*> fused_in(const TensorInfo& fused) const {
    std::vector<const TensorSpec*> parts;
    for (const TensorSpec& tensor : level_.model.tensors)
      if (name_in_file(tensor, *level_.architecture) == fused.name) parts.push_back(&tensor);
    return parts;
  }

  bool is_fusion_of_prefixes(const TensorInfo& fused) const {
    if (replaced_.count(fused.name) > 0) return false;
    const auto parts = fused_in(fused);
    return std::all_of(parts.begin(), parts.end(), [&](const TensorSpec* part) {
      return is_prefix(part->gguf_name, fused.dtype, part->shape);
    });
  }

  const PlainFile& full_;
  const PlainFile& level_;
  const std::set<std::string>& replaced_;
  bool fused_ = false;
  std::vector<std::string> names_;
  std::vector<int64_t> shapes_;
  PartHeader part_;
};

/// The keys elastify.packed.*.
GgufMetadata packed_keys(const PackedContents& contents, RopeOrder rope) {
  std::vector<double> nominal, decoder, total;
  std::vector<std::string> names, architectures, compensations, hashes, file_names, file_hashes;
  std::vector<uint64_t> sizes, file_offsets, file_sizes;
  std::vector<int32_t> groups, widths, parts, adapters, imatrices;
  for (const EmbeddedFile& file : contents.embedded) {
    file_names.push_back(file.name);
    file_offsets.push_back(file.offset);
    file_sizes.push_back(file.bytes);
    file_hashes.push_back(file.sha256);
  }
  const auto index = [](const std::optional<size_t>& place) {
    return place ? static_cast<int32_t>(*place) : -1;
  };
  for (const PackedLevel& level : contents.levels) {
    nominal.push_back(level.nominal);
    decoder.push_back(level.decoder_ratio);
    total.push_back(level.total_ratio);
    names.push_back(level.name);
    architectures.push_back(level.architecture);
    compensations.push_back(level.compensation);
    sizes.push_back(level.bytes);
    hashes.push_back(level.sha256);
    groups.insert(groups.end(), level.kv_groups.begin(), level.kv_groups.end());
    widths.insert(widths.end(), level.d_ff.begin(), level.d_ff.end());
    parts.push_back(index(level.part));
    adapters.push_back(index(level.adapter));
    imatrices.push_back(index(level.imatrix));
  }
  GgufMetadata keys;
  const auto set = [&](const char* name, auto values) {
    keys.set(with_prefix(kPackedPrefix, name), GgufArray{std::move(values)});
  };
  keys.set(with_prefix(kPackedPrefix, "version"), static_cast<uint32_t>(kPackedVersion));
  keys.set(with_prefix(kPackedPrefix, "rope"), std::string(name_of(rope)));
  set("levels", std::move(nominal));
  set("names", std::move(names));
  set("architectures", std::move(architectures));
  set("decoder_ratios", std::move(decoder));
  set("total_ratios", std::move(total));
  set("compensations", std::move(compensations));
  set("kv_groups", std::move(groups));
  set("d_ff", std::move(widths));
  set("bytes", std::move(sizes));
  set("sha256", std::move(hashes));
  set("parts", std::move(parts));
  set("adapters", std::move(adapters));
  set("imatrices", std::move(imatrices));
  set("file_names", std::move(file_names));
  set("file_offsets", std::move(file_offsets));
  set("file_bytes", std::move(file_sizes));
  set("file_sha256", std::move(file_hashes));
  return keys;
}

GgufMetadata joined(GgufMetadata keys, const GgufMetadata& further) {
  for (const auto& [key, value] : further.entries()) keys.set(key, value);
  return keys;
}

/// Fills in the embedded files' offsets, and placeholders of the hashes' length.
PackedContents with_places(PackedContents contents, const PlainFile& full) {
  const std::string unknown(64, '0');
  for (PackedLevel& level : contents.levels) level.sha256 = unknown;
  for (EmbeddedFile& file : contents.embedded) file.sha256 = unknown;
  // Offsets have a fixed size, so the header's length does not depend on them.
  const GgufMetadata keys = joined(full.keys, packed_keys(contents, full.architecture->rope));
  uint64_t offset = gguf_size(keys, full.tensors);
  for (EmbeddedFile& file : contents.embedded) {
    file.offset = offset;
    offset = (offset + file.bytes + kEmbeddedAlignment - 1) / kEmbeddedAlignment * kEmbeddedAlignment;
  }
  return contents;
}

/// Appends the file, and zeros up to the alignment of the next one.
void append_file(GgufWriter& writer, const fs::path& path) {
  const auto file = MappedFile::open(path);
  for (uint64_t at = 0; at < file->bytes().size(); at += kCopiedAtOnce) {
    check_interrupt();
    const auto part = file->bytes().subspan(at, std::min<uint64_t>(kCopiedAtOnce, file->bytes().size() - at));
    writer.append(part);
    file->release(part);
  }
  static constexpr std::array<std::byte, kEmbeddedAlignment> kZeros{};
  writer.append(std::span(kZeros).first((kZeros.size() - writer.size() % kZeros.size()) % kZeros.size()));
}

}  // namespace

PartHeader part_header(const PlainFile& full, const PlainFile& level, const std::set<std::string>& replaced) {
  return PartPlan(full, level, replaced).run();
}

PackedWriter::PackedWriter(const fs::path& path, const PlainFile& full, PackedContents contents)
    : directory_(path.parent_path()),
      model_keys_(full.keys),
      rope_(full.architecture->rope),
      contents_(with_places(std::move(contents), full)),
      writer_(path, keys(), full.tensors) {}

GgufMetadata PackedWriter::keys() const {
  return joined(model_keys_, packed_keys(contents_, rope_));
}

std::string PackedWriter::finish() {
  for (const EmbeddedFile& file : contents_.embedded) append_file(writer_, directory_ / file.name);
  writer_.replace(keys());
  std::string sha256 = writer_.finish();
  for (const EmbeddedFile& file : contents_.embedded) fs::remove(directory_ / file.name);
  return sha256;
}

}  // namespace elastify::exporter
