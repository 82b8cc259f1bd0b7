#include "export/packed.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <set>

#include "base/error.h"
#include "export/levels.h"
#include "io/byte_reader.h"
#include "model/plan.h"

namespace elastify::exporter {
namespace {

std::string packed_key(std::string_view name) {
  return fmt::format("{}{}", kPackedPrefix, name);
}

/// The array under elastify.packed.<name>.
/// \throws Error  unless it has `n` elements
template <typename T>
std::vector<T> array(const GgufMetadata& keys, std::string_view name, size_t n) {
  const std::string key = packed_key(name);
  const GgufValue* value = keys.find(key);
  const auto* held = value != nullptr ? std::get_if<GgufArray>(value) : nullptr;
  const auto* values = held != nullptr ? std::get_if<std::vector<T>>(&held->values) : nullptr;
  if (values == nullptr)
    throw Error(fmt::format("key {}: {}", key, value == nullptr ? "is missing" : "has another type"),
                "pack the levels again with `elastify export --packed`");
  if (values->size() != n) fail("key {}: expected {} elements, got {}", key, n, values->size());
  return *values;
}

size_t length(const GgufMetadata& keys, std::string_view name) {
  const std::string key = packed_key(name);
  const GgufValue* value = keys.find(key);
  const auto* held = value != nullptr ? std::get_if<GgufArray>(value) : nullptr;
  if (held == nullptr) fail("key {}: expected an array", key);
  return held->size();
}

RopeOrder rope_named(const std::string& name, std::string_view key) {
  for (const RopeOrder order : {RopeOrder::kHalves, RopeOrder::kInterleaved})
    if (name == name_of(order)) return order;
  fail("key {}: expected interleaved or halves, got \"{}\"", key, printable(name));
}

std::optional<size_t> file_index(int32_t index, std::string_view key, size_t n) {
  if (index == -1) return std::nullopt;
  if (index < 0 || static_cast<size_t>(index) >= n)
    fail("key {}: expected -1 to {}, got {}", packed_key(key), static_cast<int64_t>(n) - 1, index);
  return static_cast<size_t>(index);
}

/// \throws Error  unless the tensor has a leading part of this shape
void require_within(const HostTensor& stored, const Shape& shape) {
  bool fits = shape.size() == stored.shape.size();
  for (size_t axis = 0; fits && axis < shape.size(); ++axis)
    fits = shape[axis] >= 1 && shape[axis] <= stored.shape[axis];
  if (!fits) fail("expected a part of shape {}, got {}", to_string(stored.shape), to_string(shape));
  const DTypeInfo& type = info(stored.dtype);
  if (shape.back() % type.block_size != 0)
    fail("rows of {} elements are not whole blocks of {}, as {} has them", shape.back(), type.block_size,
         type.name);
}

/// Reads elastify.part.tensors and .shapes. A shape has two numbers, elements per row and rows; 0 rows: a
/// vector.
std::vector<KeptTensor> read_kept(const PackedFile& packed, const LevelPart& part) {
  const GgufMetadata& keys = part.file.metadata();
  const auto* names = keys.strings(fmt::format("{}tensors", kPartPrefix));
  const auto shapes = keys.integers(fmt::format("{}shapes", kPartPrefix));
  if (names == nullptr || !shapes) fail("keys {0}tensors and {0}shapes: expected both", kPartPrefix);
  if (shapes->size() != 2 * names->size())
    fail("key {}shapes: expected {} numbers for {} tensors, got {}", kPartPrefix, 2 * names->size(),
         names->size(), shapes->size());
  std::vector<KeptTensor> kept;
  std::set<std::string_view> seen;
  for (size_t i = 0; i < names->size(); ++i) {
    KeptTensor& tensor = kept.emplace_back();
    tensor.name = (*names)[i];
    with_context(fmt::format("tensor {}", printable(tensor.name)), [&] {
      if (!seen.insert((*names)[i]).second) fail("the name appears twice");
      tensor.own = part.file.contains(tensor.name);
      if (!tensor.own && !packed.model().contains(tensor.name))
        fail("it is in neither the model nor the part");
      const int64_t columns = (*shapes)[2 * i], rows = (*shapes)[2 * i + 1];
      tensor.shape = rows == 0 ? Shape{columns} : Shape{rows, columns};
      const HostTensor stored =
          tensor.own ? part.file.tensor(tensor.name) : packed.model().tensor(tensor.name);
      require_within(stored, tensor.shape);
      if (tensor.own && tensor.shape != stored.shape)
        fail("expected shape {}, got {}", to_string(stored.shape), to_string(tensor.shape));
      if (!tensor.own && part.rope != packed.rope() && is_rotary_name(tensor.name) &&
          tensor.shape[0] % packed.head_dim() != 0)
        fail("expected whole heads of {} rows, got {}", packed.head_dim(), tensor.shape[0]);
    });
  }
  if (seen.size() < part.file.tensors().size())
    for (const TensorInfo& own : part.file.tensors())
      if (seen.count(own.name) == 0) fail("tensor {}: not a tensor of the level", printable(own.name));
  return kept;
}

}  // namespace

std::string_view name_of(RopeOrder order) {
  return order == RopeOrder::kInterleaved ? "interleaved" : "halves";
}

bool is_rotary_name(std::string_view name) {
  return name.ends_with(".attn_q.weight") || name.ends_with(".attn_k.weight") ||
         name.ends_with(".attn_q.bias") || name.ends_with(".attn_k.bias");
}

HostTensor leading(const HostTensor& tensor, const Shape& shape) {
  require_within(tensor, shape);
  const uint64_t kept_row = row_bytes(tensor.dtype, shape.back());
  const uint64_t full_row = row_bytes(tensor.dtype, tensor.shape.back());
  if (kept_row == full_row) {
    HostTensor view = tensor;
    view.shape = shape;
    view.bytes = tensor.bytes.first(static_cast<uint64_t>(n_rows(shape)) * full_row);
    return view;
  }
  const auto cut = std::make_shared<std::vector<std::byte>>();
  const auto rows = tensor.bytes.first(static_cast<uint64_t>(n_rows(shape)) * full_row);
  return {tensor.dtype, shape, leading_of_rows(rows, full_row, kept_row, *cut), cut};
}

bool PackedFile::is_packed(const fs::path& path) {
  return fs::is_regular_file(path) && GgufFile::has_magic(path) &&
         GgufFile::open(path).metadata().contains(packed_key("version"));
}

PackedFile PackedFile::open(const fs::path& path) {
  PackedFile packed(GgufFile::open(path));
  with_context(path.string(), [&] {
    const GgufMetadata& keys = packed.model_.metadata();
    const auto version = keys.integer(packed_key("version"));
    if (!version)
      throw Error(fmt::format("not a packed file: key {} is missing", packed_key("version")),
                  "write one with `elastify export --packed`");
    if (*version != kPackedVersion)
      fail("key {}: version {} is not supported; supported is {}", packed_key("version"), *version,
           kPackedVersion);
    packed.rope_ = rope_named(keys.require_string(packed_key("rope")), packed_key("rope"));
    packed.head_dim_ = keys.require_integer(
        fmt::format("{}.attention.key_length", keys.require_string("general.architecture")));
    if (packed.head_dim_ < 2 || packed.head_dim_ % 2 != 0)
      fail("expected an even attention.key_length, got {}", packed.head_dim_);
    packed.read_embedded();
    packed.read_levels();
  });
  for (const PackedLevel& level : packed.levels_)
    if (level.part) packed.part_of(level);
  return packed;
}

void PackedFile::read_embedded() {
  const GgufMetadata& keys = model_.metadata();
  const size_t n = length(keys, "file_names");
  const auto names = array<std::string>(keys, "file_names", n);
  const auto offsets = array<uint64_t>(keys, "file_offsets", n),
             sizes = array<uint64_t>(keys, "file_bytes", n);
  const auto hashes = array<std::string>(keys, "file_sha256", n);
  const uint64_t size = model_.file()->bytes().size();
  uint64_t end = model_.end();
  for (size_t i = 0; i < n; ++i) {
    const std::string name = printable(names[i]);
    if (names[i].empty() || names[i].find('/') != std::string::npos || !names[i].ends_with(".gguf"))
      fail("embedded file {}: expected a name like part-050.gguf, got \"{}\"", i, name);
    if (offsets[i] < end || offsets[i] % kEmbeddedAlignment != 0)
      fail("{}: expected it at a multiple of {} bytes from {} on, got {}", name, kEmbeddedAlignment, end,
           offsets[i]);
    if (offsets[i] > size || sizes[i] > size - offsets[i])
      throw Error(fmt::format("{}: {} bytes from byte {} on, but the file has {} bytes", name, sizes[i],
                              offsets[i], size),
                  "the file is cut off; copy or download it again");
    end = offsets[i] + sizes[i];
    embedded_.push_back({names[i], offsets[i], sizes[i], hashes[i]});
  }
}

void PackedFile::read_levels() {
  const GgufMetadata& keys = model_.metadata();
  const std::string architecture = keys.require_string("general.architecture");
  const int64_t n_layers = keys.require_integer(architecture + ".block_count");
  const size_t n = length(keys, "levels");
  const auto nominal = array<double>(keys, "levels", n), decoder = array<double>(keys, "decoder_ratios", n),
             total = array<double>(keys, "total_ratios", n);
  const auto names = array<std::string>(keys, "names", n),
             families = array<std::string>(keys, "architectures", n),
             repairs = array<std::string>(keys, "compensations", n),
             hashes = array<std::string>(keys, "sha256", n);
  const auto sizes = array<uint64_t>(keys, "bytes", n);
  if (n_layers < 1 || n_layers > 1024) fail("expected 1 to 1024 layers, got {}", n_layers);
  const auto layers = static_cast<size_t>(n_layers);
  const auto groups = array<int32_t>(keys, "kv_groups", n * layers),
             widths = array<int32_t>(keys, "d_ff", n * layers);
  const auto parts = array<int32_t>(keys, "parts", n), adapters = array<int32_t>(keys, "adapters", n),
             imatrices = array<int32_t>(keys, "imatrices", n);
  for (size_t i = 0; i < n; ++i) {
    const bool full = i + 1 == n;
    const bool ordered = i == 0 || nominal[i - 1] < nominal[i];
    if (!(nominal[i] > 0) || !ordered || (nominal[i] >= 1) != full)
      fail("key {}: expected rising numbers above 0 that end with 1, got {}", packed_key("levels"),
           fmt::join(nominal, ", "));
    const std::string expected = level_stem(nominal[i]) + ".gguf";
    if (names[i] != expected)
      fail("key {}: level {}: expected {}, got {}", packed_key("names"), nominal[i], expected,
           printable(names[i]));
    const auto by_layer = [&](const std::vector<int32_t>& all) {
      return std::vector<int64_t>(all.begin() + static_cast<ptrdiff_t>(i * layers),
                                  all.begin() + static_cast<ptrdiff_t>((i + 1) * layers));
    };
    levels_.push_back({.name = names[i],
                       .nominal = nominal[i],
                       .decoder_ratio = decoder[i],
                       .total_ratio = total[i],
                       .architecture = families[i],
                       .compensation = repairs[i],
                       .kv_groups = by_layer(groups),
                       .d_ff = by_layer(widths),
                       .bytes = sizes[i],
                       .sha256 = hashes[i],
                       .part = file_index(parts[i], "parts", embedded_.size()),
                       .adapter = file_index(adapters[i], "adapters", embedded_.size()),
                       .imatrix = file_index(imatrices[i], "imatrices", embedded_.size())});
    if (levels_.back().part.has_value() == full)
      fail("key {}: level {}: expected {}", packed_key("parts"), nominal[i],
           full ? "none for the full model" : "one for every level below the full model");
  }
}

const PackedLevel& PackedFile::level(double nominal) const {
  std::vector<double> known;
  for (const PackedLevel& level : levels_) {
    if (level.name == level_stem(nominal) + ".gguf") return level;
    known.push_back(level.nominal);
  }
  throw UsageError(fmt::format("{}: no level {}", path().string(), nominal),
                   fmt::format("it holds {}", fmt::join(known, ", ")));
}

std::span<const std::byte> PackedFile::bytes_of(const EmbeddedFile& file) const {
  return model_.file()->bytes().subspan(file.offset, file.bytes);
}

GgufFile PackedFile::open_embedded(const EmbeddedFile& file) const {
  return GgufFile::open_embedded(model_.file(), file.offset, file.bytes, file.name);
}

void PackedFile::check_hash(const EmbeddedFile& file) const {
  if (const std::string found = sha256_part(*model_.file(), bytes_of(file)); found != file.sha256)
    throw Error(fmt::format("{}: {}: expected sha256 {}, got {}", path().string(), file.name,
                            printable(file.sha256), found),
                "the file is damaged; copy or download it again");
}

LevelPart PackedFile::part_of(const PackedLevel& level) const {
  if (!level.part) fail("{}: {}: the full model has no part", path().string(), level.name);
  const EmbeddedFile& place = embedded_[*level.part];
  LevelPart part{.file = open_embedded(place), .rope = {}, .fused_qkv = false, .tensors = {}};
  with_context(fmt::format("{}: {}", path().string(), place.name), [&] {
    const GgufMetadata& keys = part.file.metadata();
    const std::string rope = fmt::format("{}rope", kPartPrefix);
    part.rope = rope_named(keys.require_string(rope), rope);
    part.fused_qkv = keys.boolean(fmt::format("{}fused_qkv", kPartPrefix)).value_or(false);
    part.tensors = read_kept(*this, part);
  });
  return part;
}

}  // namespace elastify::exporter
