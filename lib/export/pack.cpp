#include "export/pack.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/progress.h"
#include "export/packed.h"

namespace elastify::exporter {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kCopiedAtOnce = size_t{1} << 24;

struct ReadyFile {
  std::string name;
  fs::path path;
  std::string sha256;
};

/// What packing works out of one level's file.
struct ComparedLevel {
  GgufMetadata keys;            ///< of its part
  std::vector<TensorInfo> own;  ///< of its part
};

std::string with_prefix(std::string_view prefix, std::string_view name) {
  return fmt::format("{}{}", prefix, name);
}

/// "part-050.gguf" beside "level-050.gguf".
std::string part_name(const std::string& level_file) {
  return "part" + level_file.substr(std::string_view("level").size());
}

/// By the architecture's name: which of stock llama.cpp's graphs rotate neighbouring elements.
RopeOrder rope_of(const std::string& architecture) {
  return architecture == "llama" || architecture == "deci" ? RopeOrder::kInterleaved : RopeOrder::kHalves;
}

bool same_bytes(const HostTensor& a, const HostTensor& b) {
  return a.bytes.size() == b.bytes.size() && std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

/// The leading part of the full model's tensor in the level's order of rows; none where there is no such
/// part.
std::optional<HostTensor> prefix_of(const GgufFile& full, const std::string& name, DType dtype,
                                    const Shape& shape, RopeOrder from, RopeOrder to, int64_t head_dim) {
  if (!full.contains(name)) return std::nullopt;
  const HostTensor whole = full.tensor(name);
  if (whole.dtype != dtype || whole.shape.size() != shape.size() ||
      shape.back() % info(dtype).block_size != 0)
    return std::nullopt;
  for (size_t axis = 0; axis < shape.size(); ++axis)
    if (shape[axis] > whole.shape[axis]) return std::nullopt;
  if (!is_rotary_name(name) || from == to) return leading(whole, shape);
  if (shape[0] % head_dim != 0) return std::nullopt;
  return reorder_rope_rows(leading(whole, shape), head_dim, from, to);
}

/// q, k and v of a tensor that holds the rows of all three.
struct FusedRows {
  std::string name;
  int64_t first, rows;
};
std::vector<FusedRows> fused_rows(const std::string& name, int64_t kv_heads, int64_t heads,
                                  int64_t head_dim) {
  const std::string stem = name.substr(0, name.size() - std::string_view("attn_qkv.weight").size());
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  return {
      {stem + "attn_q.weight", 0, q}, {stem + "attn_k.weight", q, kv}, {stem + "attn_v.weight", q + kv, kv}};
}

std::vector<int32_t> layer_widths(const GgufFile& file, const char* key) {
  const auto values = file.metadata().integers(key);
  if (!values) fail("{}: key {} is missing", file.path().string(), key);
  return {values->begin(), values->end()};
}

class LevelComparison {
 public:
  LevelComparison(const GgufFile& full, const GgufFile& level) : full_(full), level_(level) {
    const GgufMetadata& keys = level.metadata();
    architecture_ = keys.require_string("general.architecture");
    head_dim_ = keys.require_integer(architecture_ + ".attention.key_length");
    from_ = rope_of(full.metadata().require_string("general.architecture"));
    to_ = rope_of(architecture_);
  }

  ComparedLevel run() {
    for (const TensorInfo& tensor : level_.tensors()) with_context(tensor.name, [&] { place(tensor); });
    std::vector<std::string> order;
    for (const auto& [key, value] : level_.metadata().entries()) {
      order.push_back(key);
      const GgufValue* shared = full_.metadata().find(key);
      if (shared == nullptr || !same_value(*shared, value)) result_.keys.set(key, value);
    }
    result_.keys.set(with_prefix(kPartPrefix, "keys"), GgufArray{std::move(order)});
    result_.keys.set(with_prefix(kPartPrefix, "rope"), std::string(name_of(to_)));
    result_.keys.set(with_prefix(kPartPrefix, "fused_qkv"), fused_);
    result_.keys.set(with_prefix(kPartPrefix, "tensors"), GgufArray{std::move(names_)});
    result_.keys.set(with_prefix(kPartPrefix, "shapes"), GgufArray{std::move(shapes_)});
    return std::move(result_);
  }

 private:
  /// Equal to the byte, as it is written.
  static bool same_value(const GgufValue& a, const GgufValue& b) {
    const auto* left = std::get_if<GgufArray>(&a);
    const auto* right = std::get_if<GgufArray>(&b);
    if (left != nullptr && right != nullptr) return left->values == right->values;
    return left == nullptr && right == nullptr && a.index() == b.index() &&
           std::visit(
               [&](const auto& value) {
                 using T = std::decay_t<decltype(value)>;
                 if constexpr (std::is_same_v<T, GgufArray>)
                   return false;
                 else
                   return value == std::get<T>(b);
               },
               a);
  }

  void add(const std::string& name, const Shape& shape) {
    names_.push_back(name);
    shapes_.push_back(shape.back());
    shapes_.push_back(shape.size() > 1 ? shape[0] : 0);
  }

  void place(const TensorInfo& tensor) {
    if (tensor.shape.size() > 2)
      fail("expected one or two dimensions, got shape {}", to_string(tensor.shape));
    const HostTensor found = level_.tensor(tensor.name);
    if (tensor.name.ends_with(".attn_qkv.weight") && is_fusion(tensor, found)) return;
    const auto prefix = prefix_of(full_, tensor.name, tensor.dtype, tensor.shape, from_, to_, head_dim_);
    if (!prefix || !same_bytes(*prefix, found)) result_.own.push_back(tensor);
    add(tensor.name, tensor.shape);
  }

  bool is_fusion(const TensorInfo& tensor, const HostTensor& found) {
    const int64_t layer = std::strtoll(tensor.name.c_str() + std::string_view("blk.").size(), nullptr, 10);
    const int64_t kv = layer_widths(level_, "elastify.kv_groups").at(static_cast<size_t>(layer));
    const int64_t heads = tensor.shape[0] / head_dim_ - 2 * kv;
    const int64_t row = static_cast<int64_t>(found.bytes.size()) / tensor.shape[0];
    const std::vector<FusedRows> parts = fused_rows(tensor.name, kv, heads, head_dim_);
    for (const FusedRows& part : parts) {
      const auto prefix =
          prefix_of(full_, part.name, tensor.dtype, {part.rows, tensor.shape[1]}, from_, to_, head_dim_);
      HostTensor rows = found;
      rows.bytes =
          found.bytes.subspan(static_cast<size_t>(part.first * row), static_cast<size_t>(part.rows * row));
      if (!prefix || !same_bytes(*prefix, rows)) return false;
    }
    for (const FusedRows& part : parts) add(part.name, {part.rows, tensor.shape[1]});
    fused_ = true;
    return true;
  }

  const GgufFile& full_;
  const GgufFile& level_;
  std::string architecture_;
  int64_t head_dim_ = 0;
  RopeOrder from_ = RopeOrder::kHalves, to_ = RopeOrder::kHalves;
  bool fused_ = false;
  std::vector<std::string> names_;
  std::vector<int64_t> shapes_;
  ComparedLevel result_;
};

Json read_manifest(const fs::path& directory) {
  return Json::parse(read_text(directory / "manifest.json"));
}
void write_manifest(const fs::path& directory, const Json& manifest) {
  write_text(directory / "manifest.json",
             manifest.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

/// The full model's entry.
/// \throws Error  unless there is one
const Json& full_entry(const Json& manifest, const fs::path& directory) {
  const Json* found = nullptr;
  for (const Json& file : manifest.at("files")) {
    if (file.at("level").get<double>() < 1) continue;
    if (found != nullptr)
      throw Error(fmt::format("{}: several full models, {} and {}; one file holds the levels of one",
                              directory.string(), found->at("name").get<std::string>(),
                              file.at("name").get<std::string>()),
                  "export one type at a time");
    found = &file;
  }
  if (found == nullptr) fail("{}: no full model in manifest.json", directory.string());
  return *found;
}

/// "level-050.gguf" as a manifest lists it, from narrow to wide, the full model last.
std::vector<Json> files_by_level(const Json& manifest) {
  std::vector<Json> files(manifest.at("files").begin(), manifest.at("files").end());
  std::sort(files.begin(), files.end(), [](const Json& a, const Json& b) {
    return a.at("level").get<double>() < b.at("level").get<double>();
  });
  return files;
}

/// The keys elastify.packed.*.
/// \param offset  of the first embedded file
GgufMetadata packed_keys(const std::vector<Json>& levels, const fs::path& directory, RopeOrder rope,
                         const std::vector<ReadyFile>& embedded, uint64_t offset) {
  std::vector<double> nominal, decoder, total;
  std::vector<std::string> names, architectures, compensations, hashes, file_names, file_hashes;
  std::vector<uint64_t> sizes, file_offsets, file_sizes;
  std::vector<int32_t> groups, widths, parts, adapters, imatrices;
  std::map<std::string, int32_t> index;
  for (const ReadyFile& file : embedded) {
    index.emplace(file.name, static_cast<int32_t>(file_names.size()));
    file_names.push_back(file.name);
    file_hashes.push_back(file.sha256);
    file_offsets.push_back(offset);
    file_sizes.push_back(fs::file_size(file.path));
    offset = (offset + file_sizes.back() + 31) / 32 * 32;
  }
  const auto place = [&](const std::string& name) {
    const auto found = index.find(name);
    return found == index.end() ? -1 : found->second;
  };
  for (const Json& level : levels) {
    const auto name = level.at("name").get<std::string>();
    const bool full = level.at("level").get<double>() >= 1;
    const std::string suffix = full ? ".gguf" : name.substr(std::string_view("level").size());
    const GgufFile file = GgufFile::open(directory / name);
    nominal.push_back(full ? 1 : level.at("level").get<double>());
    decoder.push_back(level.at("decoder_ratio").get<double>());
    total.push_back(level.at("total_ratio").get<double>());
    names.push_back(name);
    architectures.push_back(level.at("architecture").get<std::string>());
    compensations.push_back(level.at("compensation").get<std::string>());
    sizes.push_back(level.at("bytes").get<uint64_t>());
    hashes.push_back(level.at("sha256").get<std::string>());
    for (const int32_t width : layer_widths(file, "elastify.kv_groups")) groups.push_back(width);
    for (const int32_t width : layer_widths(file, "elastify.d_ff")) widths.push_back(width);
    parts.push_back(place("part" + suffix));
    adapters.push_back(place("lora" + suffix));
    imatrices.push_back(place("imatrix" + suffix));
  }
  GgufMetadata keys;
  const auto set = [&](const char* name, auto value) {
    if constexpr (std::is_arithmetic_v<decltype(value)> || std::is_same_v<decltype(value), std::string>)
      keys.set(with_prefix(kPackedPrefix, name), value);
    else
      keys.set(with_prefix(kPackedPrefix, name), GgufArray{std::move(value)});
  };
  set("version", static_cast<uint32_t>(kPackedVersion));
  set("rope", std::string(name_of(rope)));
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

/// The file, and zeros up to where the next one may begin.
void append_file(GgufWriter& writer, const fs::path& path) {
  const auto file = MappedFile::open(path);
  for (uint64_t at = 0; at < file->bytes().size(); at += kCopiedAtOnce) {
    const auto part = file->bytes().subspan(at, std::min<uint64_t>(kCopiedAtOnce, file->bytes().size() - at));
    writer.append(part);
    file->release(part);
  }
  static constexpr std::array<std::byte, 32> kZeros{};
  writer.append(std::span(kZeros).first((32 - writer.size() % 32) % 32));
}

/// Writes the level's part beside its file.
ReadyFile write_part(const GgufFile& full, const fs::path& level) {
  const GgufFile file = GgufFile::open(level);
  ReadyFile part{.name = part_name(level.filename().string()), .path = {}, .sha256 = {}};
  part.path = level.parent_path() / part.name;
  const ComparedLevel compared =
      with_context(level.filename().string(), [&] { return LevelComparison(full, file).run(); });
  GgufWriter writer(part.path, compared.keys, compared.own);
  for (const TensorInfo& own : compared.own) writer.write(file.tensor(own.name).bytes);
  part.sha256 = writer.finish();
  return part;
}

}  // namespace

void pack(const fs::path& directory) {
  Json manifest = read_manifest(directory);
  const std::vector<Json> levels = files_by_level(manifest);
  const GgufFile full =
      GgufFile::open(directory / full_entry(manifest, directory).at("name").get<std::string>());
  std::vector<ReadyFile> embedded;
  Progress progress("pack", static_cast<int64_t>(levels.size()), "levels");
  for (const Json& level : levels) {
    check_interrupt();
    if (level.at("level").get<double>() < 1)
      embedded.push_back(write_part(full, directory / level.at("name").get<std::string>()));
    progress.advance(1);
  }
  for (const char* kind : {"adapters", "imatrices"})
    for (const Json& file : manifest.value(kind, Json::array())) {
      const auto name = file.at("name").get<std::string>();
      embedded.push_back({name, directory / name, file.at("sha256").get<std::string>()});
    }

  const RopeOrder rope = rope_of(full.metadata().require_string("general.architecture"));
  const auto keys_at = [&](uint64_t offset) {
    GgufMetadata keys = full.metadata();
    const GgufMetadata packed = packed_keys(levels, directory, rope, embedded, offset);
    for (const auto& [key, value] : packed.entries()) keys.set(key, value);
    return keys;
  };
  // Offsets are numbers of a fixed size, so that the header is as long with any of them.
  const GgufMetadata keys = keys_at(gguf_size(keys_at(0), full.tensors()));
  GgufWriter writer(directory / "model.gguf", keys, full.tensors());
  for (const TensorInfo& tensor : full.tensors()) {
    check_interrupt();
    writer.write(full.tensor(tensor.name).bytes);
  }
  for (const ReadyFile& file : embedded) append_file(writer, file.path);
  const std::string sha256 = writer.finish();
  for (const ReadyFile& file : embedded) fs::remove(file.path);
  for (const Json& level : levels) fs::remove(directory / level.at("name").get<std::string>());
  manifest["packed"] = {{"name", "model.gguf"}, {"bytes", writer.size()}, {"sha256", sha256}};
  write_manifest(directory, manifest);
}

}  // namespace elastify::exporter
