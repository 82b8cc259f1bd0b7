#include "io/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/error.h"
#include "io/byte_reader.h"

namespace elastify {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;  // the specification's; runtimes that map files want 32
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kMaxParts = 65535;   // split.no has 16 bits
constexpr size_t kMaxNameLength = 63;  // ggml's GGML_MAX_NAME with its final zero

// Value types are numbered like the alternatives of GgufValue; arrays' element types lack kArray.
constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;
constexpr std::array<std::string_view, 13> kTypeNames = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                         "int32",  "float32", "bool",   "string", "array",
                                                         "uint64", "int64",   "float64"};
static_assert(std::variant_size_v<GgufValue> == kTypeNames.size());
static_assert(std::is_same_v<std::variant_alternative_t<kString, GgufValue>, std::string>);
static_assert(std::is_same_v<std::variant_alternative_t<kArray, GgufValue>, GgufArray>);

uint32_t element_type(const GgufArray& array) {
  const auto index = static_cast<uint32_t>(array.values.index());
  return index < kArray ? index : index + 1;
}

std::string type_name(const GgufValue& value) {
  if (const auto* array = std::get_if<GgufArray>(&value))
    return fmt::format("array of {}", kTypeNames[element_type(*array)]);
  return std::string(kTypeNames[value.index()]);
}

template <typename T>
constexpr bool kIsInteger = std::is_integral_v<T> && !std::is_same_v<T, bool>;

void require_type(uint32_t type) {
  if (type >= kTypeNames.size())
    fail("unknown value type {}; known are 0 to {}", type, kTypeNames.size() - 1);
}

uint64_t padded(uint64_t size, uint64_t alignment) {
  return (size + alignment - 1) / alignment * alignment;
}

// Both return false if the result overflows: the numbers come from files.
bool add(uint64_t a, uint64_t b, uint64_t& sum) {
  return !__builtin_add_overflow(a, b, &sum);
}
bool pad(uint64_t size, uint64_t alignment, uint64_t& result) {
  if (!add(size, alignment - 1, result)) return false;
  result = result / alignment * alignment;
  return true;
}

uint64_t alignment_of(const GgufMetadata& metadata, uint64_t least) {
  const auto alignment = metadata.integer(kAlignmentKey);
  if (!alignment) return kDefaultAlignment;
  const auto value = static_cast<uint64_t>(*alignment);
  if (*alignment < 0 || value < least || value > kMaxAlignment || !std::has_single_bit(value))
    fail("key {}: expected a power of two from {} to {}, got {}", kAlignmentKey, least, kMaxAlignment,
         *alignment);
  return value;
}

std::string supported_types() {
  std::string list;
  for (const DTypeInfo& type : all_dtypes())
    list += fmt::format("{}{} ({})", list.empty() ? "" : ", ", type.ggml_type, type.name);
  return list;
}

DType dtype_of(uint32_t ggml_type) {
  for (const DTypeInfo& type : all_dtypes())
    if (type.ggml_type == ggml_type) return type.dtype;
  throw Error(fmt::format("unsupported ggml type {}; supported are {}", ggml_type, supported_types()),
              "convert the model to one of these types first");
}

std::string read_string(ByteReader& reader, std::string_view what) {
  const auto length = reader.read<uint64_t>(what);
  const auto bytes = reader.take(length, what);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool read_bool(ByteReader& reader) {
  const auto byte = reader.read<uint8_t>("value");
  if (byte > 1) fail("expected a bool of 0 or 1, got {}", byte);
  return byte == 1;
}

/// "-00001-of-00003.gguf" for part 0 of 3.
std::string part_suffix(int64_t part, int64_t n_parts) {
  return fmt::format("-{:05}-of-{:05}.gguf", part + 1, n_parts);
}

// Throws unless `count` records of at least `size` bytes each can follow. To be called before memory is
// allocated.
void require_room(const ByteReader& reader, uint64_t count, uint64_t size, std::string_view what) {
  if (count > reader.left() / size)
    fail("{} {} do not fit into the remaining {} bytes", count, what, reader.left());
}

template <typename T>
std::vector<T> read_elements(ByteReader& reader, uint64_t count) {
  std::vector<T> values;
  if constexpr (std::is_same_v<T, std::string>) {
    require_room(reader, count, sizeof(uint64_t), "strings");
    values.reserve(count);
    for (uint64_t i = 0; i < count; ++i) values.push_back(read_string(reader, fmt::format("element {}", i)));
  } else if constexpr (std::is_same_v<T, bool>) {
    require_room(reader, count, 1, "elements");
    values.reserve(count);
    for (uint64_t i = 0; i < count; ++i) values.push_back(read_bool(reader));
  } else {
    require_room(reader, count, sizeof(T), "elements");
    values.resize(count);
    const auto bytes = reader.take(count * sizeof(T), "elements");
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  return values;
}

GgufArray read_array(ByteReader& reader) {
  const auto type = reader.read<uint32_t>("element type");
  require_type(type);
  if (type == kArray) fail("arrays of arrays are not supported");
  const auto count = reader.read<uint64_t>("array length");
  switch (type) {
    case 0:
      return {read_elements<uint8_t>(reader, count)};
    case 1:
      return {read_elements<int8_t>(reader, count)};
    case 2:
      return {read_elements<uint16_t>(reader, count)};
    case 3:
      return {read_elements<int16_t>(reader, count)};
    case 4:
      return {read_elements<uint32_t>(reader, count)};
    case 5:
      return {read_elements<int32_t>(reader, count)};
    case 6:
      return {read_elements<float>(reader, count)};
    case 7:
      return {read_elements<bool>(reader, count)};
    case 8:
      return {read_elements<std::string>(reader, count)};
    case 10:
      return {read_elements<uint64_t>(reader, count)};
    case 11:
      return {read_elements<int64_t>(reader, count)};
    default:
      return {read_elements<double>(reader, count)};
  }
}

GgufValue read_value(ByteReader& reader) {
  const auto type = reader.read<uint32_t>("value type");
  require_type(type);
  switch (type) {
    case 0:
      return reader.read<uint8_t>("value");
    case 1:
      return reader.read<int8_t>("value");
    case 2:
      return reader.read<uint16_t>("value");
    case 3:
      return reader.read<int16_t>("value");
    case 4:
      return reader.read<uint32_t>("value");
    case 5:
      return reader.read<int32_t>("value");
    case 6:
      return reader.read<float>("value");
    case 7:
      return read_bool(reader);
    case 8:
      return read_string(reader, "value");
    case 9:
      return read_array(reader);
    case 10:
      return reader.read<uint64_t>("value");
    case 11:
      return reader.read<int64_t>("value");
    default:
      return reader.read<double>("value");
  }
}

uint32_t read_version(ByteReader& reader) {
  const auto start = reader.take(std::min<uint64_t>(kMagic.size(), reader.left()), "magic");
  const std::string_view magic(reinterpret_cast<const char*>(start.data()), start.size());
  if (magic != kMagic) fail("not a GGUF file: expected it to start with GGUF, got \"{}\"", printable(magic));
  const auto version = reader.read<uint32_t>("version");
  if (version != 0 && (version & 0xffff) == 0)
    throw Error(fmt::format("expected a little-endian file, got version {:#010x}, which is {} big-endian",
                            version, __builtin_bswap32(version)),
                "convert the model again for a little-endian machine");
  if (version != 2 && version != 3)
    throw Error(fmt::format("expected GGUF version 2 or 3, got {}", version),
                version == 1 ? "convert the model again with a current converter" : "");
  return version;
}

struct TensorRecord {
  TensorInfo info;
  uint64_t offset = 0;
};

// Reads the record that follows the tensor's name.
TensorRecord read_record(ByteReader& reader, std::string name) {
  TensorRecord record;
  record.info.name = std::move(name);
  const auto n_dims = reader.read<uint32_t>("number of dimensions");
  if (n_dims < 1 || n_dims > kMaxDims) fail("expected 1 to {} dimensions, got {}", kMaxDims, n_dims);
  Shape& shape = record.info.shape;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const auto dim = reader.read<uint64_t>("dimension");
    if (dim == 0 || dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail("expected dimension {} to be from 1 to {}, got {}", i, std::numeric_limits<int64_t>::max(), dim);
    shape.push_back(static_cast<int64_t>(dim));
  }
  std::reverse(shape.begin(), shape.end());
  record.info.dtype = dtype_of(reader.read<uint32_t>("type"));
  record.offset = reader.read<uint64_t>("offset");
  return record;
}

std::optional<int64_t> as_integer(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> std::optional<int64_t> {
        using T = std::decay_t<decltype(held)>;
        if constexpr (kIsInteger<T>)
          if (std::in_range<int64_t>(held)) return static_cast<int64_t>(held);
        return std::nullopt;
      },
      value);
}

std::string describe(const GgufValue& value) {
  return std::visit(
      [&](const auto& held) -> std::string {
        using T = std::decay_t<decltype(held)>;
        if constexpr (kIsInteger<T>) return fmt::format("{} {}", type_name(value), held);
        return type_name(value);
      },
      value);
}

template <typename T>
const T* element_vector(const GgufMetadata& metadata, std::string_view key, std::string_view expected) {
  const GgufValue* value = metadata.find(key);
  if (value == nullptr) return nullptr;
  if (const auto* array = std::get_if<GgufArray>(value))
    if (const auto* values = std::get_if<T>(&array->values)) return values;
  fail("key {}: expected an array of {}, got {}", printable(key), expected, describe(*value));
}

template <typename T>
T required(std::optional<T> value, std::string_view key, std::string_view expected) {
  if (!value) fail("key {}: expected {}, but there is no such key", printable(key), expected);
  return *std::move(value);
}

class ByteWriter {
 public:
  template <typename T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void string(std::string_view text) {
    number(uint64_t{text.size()});
    bytes_ += text;
  }
  void value(const GgufValue& value) {
    number(static_cast<uint32_t>(value.index()));
    std::visit([&](const auto& held) { put(held); }, value);
  }
  void pad(uint64_t alignment) { bytes_.resize(padded(bytes_.size(), alignment), '\0'); }
  const std::string& bytes() const { return bytes_; }

 private:
  void put(const std::string& text) { string(text); }
  void put(bool value) { number(uint8_t{value}); }
  void put(const GgufArray& array) {
    number(element_type(array));
    number(uint64_t{array.size()});
    std::visit(
        [&](const auto& values) {
          using T = typename std::decay_t<decltype(values)>::value_type;
          if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
            bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
          else
            for (const T& element : values) put(element);
        },
        array.values);
  }
  template <typename T>
  requires std::is_arithmetic_v<T>
  void put(T value) { number(value); }

  std::string bytes_;
};

void require_writable(const std::vector<TensorInfo>& tensors) {
  std::map<std::string_view, bool> seen;
  for (const TensorInfo& tensor : tensors) {
    with_context(fmt::format("tensor {}", printable(tensor.name)), [&] {
      if (tensor.name.empty() || tensor.name.size() > kMaxNameLength)
        fail("expected a name of 1 to {} bytes, got {}", kMaxNameLength, tensor.name.size());
      if (!seen.emplace(tensor.name, true).second) fail("the name is given twice");
      if (tensor.shape.empty() || tensor.shape.size() > kMaxDims)
        fail("expected 1 to {} dimensions, got shape {}", kMaxDims, to_string(tensor.shape));
      if (n_bytes(tensor.dtype, tensor.shape) == 0)
        fail("expected at least one element, got shape {}", to_string(tensor.shape));
    });
  }
}

std::string header_bytes(const GgufMetadata& metadata, const std::vector<TensorInfo>& tensors,
                         uint64_t alignment) {
  ByteWriter header;
  header.number(std::array<char, 4>{'G', 'G', 'U', 'F'});
  header.number(uint32_t{3});
  header.number(uint64_t{tensors.size()});
  header.number(uint64_t{metadata.entries().size()});
  for (const auto& [key, value] : metadata.entries()) {
    header.string(key);
    header.value(value);
  }
  uint64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    header.string(tensor.name);
    header.number(static_cast<uint32_t>(tensor.shape.size()));
    for (auto dim = tensor.shape.rbegin(); dim != tensor.shape.rend(); ++dim)
      header.number(static_cast<uint64_t>(*dim));
    header.number(info(tensor.dtype).ggml_type);
    header.number(offset);
    offset += padded(n_bytes(tensor.dtype, tensor.shape), alignment);
  }
  header.pad(alignment);
  return header.bytes();
}

}  // namespace

size_t GgufArray::size() const {
  return std::visit([](const auto& held) { return held.size(); }, values);
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

void GgufMetadata::set(std::string key, GgufValue value) {
  const auto [place, added] = index_.emplace(key, entries_.size());
  if (added)
    entries_.emplace_back(std::move(key), std::move(value));
  else
    entries_[place->second].second = std::move(value);
}

void GgufMetadata::erase(std::string_view key) {
  const auto found = index_.find(key);
  if (found == index_.end()) return;
  const size_t removed = found->second;
  index_.erase(found);
  entries_.erase(entries_.begin() + static_cast<ptrdiff_t>(removed));
  for (auto& [name, position] : index_)
    if (position > removed) --position;
}

std::optional<int64_t> GgufMetadata::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto result = as_integer(*value);
  if (!result) fail("key {}: expected an integer below 2^63, got {}", printable(key), describe(*value));
  return result;
}

std::optional<double> GgufMetadata::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  return std::visit(
      [&](const auto& held) -> double {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_floating_point_v<T> || kIsInteger<T>) return static_cast<double>(held);
        fail("key {}: expected a number, got {}", printable(key), describe(*value));
      },
      *value);
}

std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* held = std::get_if<bool>(value)) return *held;
  fail("key {}: expected a bool, got {}", printable(key), describe(*value));
}

std::optional<std::string> GgufMetadata::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* held = std::get_if<std::string>(value)) return *held;
  fail("key {}: expected a string, got {}", printable(key), describe(*value));
}

const std::vector<std::string>* GgufMetadata::strings(std::string_view key) const {
  return element_vector<std::vector<std::string>>(*this, key, "string");
}

const std::vector<float>* GgufMetadata::floats(std::string_view key) const {
  return element_vector<std::vector<float>>(*this, key, "float32");
}

std::optional<std::vector<int64_t>> GgufMetadata::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr)
    fail("key {}: expected an array of integers, got {}", printable(key), describe(*value));
  return std::visit(
      [&](const auto& values) -> std::vector<int64_t> {
        using T = typename std::decay_t<decltype(values)>::value_type;
        if constexpr (kIsInteger<T>) {
          for (const T element : values)
            if (!std::in_range<int64_t>(element))
              fail("key {}: expected integers below 2^63, got {}", printable(key), element);
          return {values.begin(), values.end()};
        }
        fail("key {}: expected an array of integers, got {}", printable(key), describe(*value));
      },
      array->values);
}

int64_t GgufMetadata::require_integer(std::string_view key) const {
  return required(integer(key), key, "an integer");
}
double GgufMetadata::require_number(std::string_view key) const {
  return required(number(key), key, "a number");
}
std::string GgufMetadata::require_string(std::string_view key) const {
  return required(string(key), key, "a string");
}

bool GgufFile::has_magic(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()).starts_with(kMagic);
}

GgufFile GgufFile::open_one(const fs::path& path) {
  GgufFile result;
  result.file_ = MappedFile::open(path);
  result.bytes_ = result.file_->bytes();
  with_context(path.string(), [&] { result.parse(); });
  return result;
}

GgufFile GgufFile::open(const fs::path& path) {
  GgufFile result = open_one(path);
  with_context(path.string(), [&] { result.add_parts(); });
  return result;
}

GgufFile GgufFile::open_embedded(std::shared_ptr<const MappedFile> file, uint64_t offset, uint64_t size,
                                 const std::string& name) {
  return with_context(fmt::format("{}: {}", file->path().string(), printable(name)), [&] {
    const uint64_t available = file->bytes().size();
    if (offset % kDefaultAlignment != 0)
      fail("expected it at a multiple of {} bytes, got {}", kDefaultAlignment, offset);
    if (offset > available || size > available - offset)
      throw Error(fmt::format("{} bytes from byte {} on, but the file has {} bytes", size, offset, available),
                  "the file is cut off; copy or download it again");
    GgufFile result;
    result.file_ = std::move(file);
    result.bytes_ = result.file_->bytes().subspan(offset, size);
    result.parse();
    return result;
  });
}

void GgufFile::parse() {
  const std::span<const std::byte> bytes = bytes_;
  ByteReader reader(bytes);
  version_ = read_version(reader);
  const auto n_tensors = reader.read<uint64_t>("number of tensors");
  const auto n_keys = reader.read<uint64_t>("number of keys");
  // The shortest key record has a name's length, a value type and a byte. The shortest tensor record has a
  // name's length, n_dims, one dimension, a type and an offset.
  require_room(reader, n_keys, 8 + 4 + 1, "keys");
  require_room(reader, n_tensors, 8 + 4 + 8 + 4 + 8, "tensors");

  for (uint64_t i = 0; i < n_keys; ++i) {
    std::string key = read_string(reader, fmt::format("name of key {}", i));
    with_context(fmt::format("key {}", printable(key)), [&] {
      if (metadata_.contains(key)) fail("the key appears twice");
      GgufValue value = read_value(reader);
      metadata_.set(std::move(key), std::move(value));
    });
  }
  const uint64_t alignment = alignment_of(metadata_, kMinAlignment);

  std::vector<uint64_t> offsets;
  uint64_t expected_offset = 0;
  for (uint64_t i = 0; i < n_tensors; ++i) {
    std::string name = read_string(reader, fmt::format("name of tensor {}", i));
    with_context(fmt::format("tensor {}", printable(name)), [&] {
      if (!index_.emplace(name, i).second) fail("the name appears twice");
      TensorRecord record = read_record(reader, std::move(name));
      if (record.offset != expected_offset)
        fail("expected offset {}, the end of the tensor before it, got {}", expected_offset, record.offset);
      uint64_t end = 0;
      if (!add(record.offset, n_bytes(record.info.dtype, record.info.shape), end) ||
          !pad(end, alignment, expected_offset))
        fail("shape {} of {} ends after byte 2^64", to_string(record.info.shape),
             elastify::info(record.info.dtype).name);
      offsets.push_back(record.offset);
      tensors_.push_back(std::move(record.info));
    });
  }

  const uint64_t data_start = padded(reader.position(), alignment);
  for (uint64_t i = 0; i < n_tensors; ++i) {
    const uint64_t size = n_bytes(tensors_[i].dtype, tensors_[i].shape);
    uint64_t begin = 0, end = 0;
    if (!add(data_start, offsets[i], begin) || !add(begin, size, end))
      fail("tensor {}: shape {} ends after byte 2^64", printable(tensors_[i].name),
           to_string(tensors_[i].shape));
    if (end > bytes.size())
      throw Error(fmt::format("tensor {}: ends at byte {}, but the file has {} bytes",
                              printable(tensors_[i].name), end, bytes.size()),
                  "the file is cut off; copy or download it again");
    data_.push_back(bytes.subspan(begin, size));
    owners_.push_back(file_);
  }
  end_ = std::min<uint64_t>(data_start + expected_offset, bytes.size());
}

void GgufFile::add_parts() {
  const int64_t n_parts = metadata_.integer("split.count").value_or(1);
  if (n_parts == 1) return;
  if (n_parts < 1 || n_parts > kMaxParts)
    fail("key split.count: expected 1 to {}, got {}", kMaxParts, n_parts);
  const std::string name = path().filename().string(), suffix = part_suffix(0, n_parts);
  if (metadata_.integer("split.no").value_or(0) != 0 || !name.ends_with(suffix))
    throw Error(
        fmt::format("a part of a model split over {} files, whose first is named ...{}", n_parts, suffix),
        "give the first part, under the name that the split gave it");
  for (int64_t i = 1; i < n_parts; ++i) {
    GgufFile part = open_one(path().parent_path() /
                             (name.substr(0, name.size() - suffix.size()) + part_suffix(i, n_parts)));
    with_context(part.path().string(), [&] {
      if (const int64_t number = part.metadata_.require_integer("split.no"); number != i)
        fail("key split.no: expected {}, got {}", i, number);
      for (size_t t = 0; t < part.tensors_.size(); ++t) {
        if (!index_.emplace(part.tensors_[t].name, tensors_.size()).second)
          fail("tensor {}: another part has it, too", printable(part.tensors_[t].name));
        tensors_.push_back(part.tensors_[t]);
        data_.push_back(part.data_[t]);
        owners_.push_back(part.file_);
      }
    });
    parts_.push_back(std::move(part));
  }
  const int64_t stated = metadata_.integer("split.tensors.count").value_or(-1);
  if (stated != static_cast<int64_t>(tensors_.size()))
    fail("key split.tensors.count: expected {}, what all parts hold, got {}", tensors_.size(), stated);
}

std::vector<fs::path> GgufFile::paths() const {
  std::vector<fs::path> paths = {path()};
  for (const GgufFile& part : parts_) paths.push_back(part.path());
  return paths;
}

void GgufFile::release_pages() const {
  file_->release(bytes_);
  for (const GgufFile& part : parts_) part.release_pages();
}

bool GgufFile::contains(std::string_view name) const {
  return index_.find(name) != index_.end();
}

HostTensor GgufFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) fail("{}: there is no tensor {}", path().string(), printable(name));
  const TensorInfo& record = tensors_[found->second];
  return {record.dtype, record.shape, data_[found->second], owners_[found->second]};
}

uint64_t gguf_size(const GgufMetadata& metadata, const std::vector<TensorInfo>& tensors) {
  const uint64_t alignment = alignment_of(metadata, kDefaultAlignment);
  uint64_t size = header_bytes(metadata, tensors, alignment).size();
  for (const TensorInfo& tensor : tensors) size += padded(n_bytes(tensor.dtype, tensor.shape), alignment);
  return size;
}

GgufWriter::GgufWriter(const fs::path& path, const GgufMetadata& metadata, std::vector<TensorInfo> tensors,
                       Target target)
    : path_(path), tensors_(std::move(tensors)) {
  with_context(path.string(), [&] {
    alignment_ = alignment_of(metadata, kDefaultAlignment);
    require_writable(tensors_);
  });
  if (target == Target::kFile) file_.emplace(path);
  const std::string header = header_bytes(metadata, tensors_, alignment_);
  put(std::as_bytes(std::span(header)));
  header_size_ = size_;
  if (!tensors_.empty()) left_ = n_bytes(tensors_[0].dtype, tensors_[0].shape);
}

void GgufWriter::put(std::span<const std::byte> bytes) {
  if (file_) file_->write(bytes);
  digest_.update(bytes);
  size_ += bytes.size();
}

std::string_view GgufWriter::current() const {
  return current_ < tensors_.size() ? std::string_view(tensors_[current_].name) : std::string_view();
}

void GgufWriter::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (current_ == tensors_.size())
    fail("{}: got {} more bytes after the last of {} tensors", path_.string(), bytes.size(), tensors_.size());
  if (bytes.size() > left_)
    fail("{}: tensor {}: expected at most {} more bytes, got {}", path_.string(), tensors_[current_].name,
         left_, bytes.size());
  put(bytes);
  left_ -= bytes.size();
  if (left_ > 0) return;
  pad();
  if (++current_ < tensors_.size()) left_ = n_bytes(tensors_[current_].dtype, tensors_[current_].shape);
}

void GgufWriter::replace(const GgufMetadata& metadata) {
  const std::string header = header_bytes(metadata, tensors_, alignment_);
  if (header.size() != header_size_)
    fail("{}: expected {} bytes of keys and tables, got {}", path_.string(), header_size_, header.size());
  if (!file_) fail("{}: there is no file whose keys could be replaced", path_.string());
  file_->overwrite(0, std::as_bytes(std::span(header)));
  is_replaced_ = true;
}

void GgufWriter::append(std::span<const std::byte> bytes) {
  if (current_ < tensors_.size())
    fail("{}: tensor {}: {} bytes are missing", path_.string(), tensors_[current_].name, left_);
  put(bytes);
}

void GgufWriter::pad() {
  static constexpr std::array<std::byte, 4096> kZeros{};
  for (uint64_t missing = padded(size_, alignment_) - size_; missing > 0;) {
    const uint64_t n = std::min<uint64_t>(missing, kZeros.size());
    put(std::span(kZeros).first(n));
    missing -= n;
  }
}

std::string GgufWriter::finish(const std::string& expected) {
  append({});
  const std::string digest = is_replaced_ ? sha256_file(file_->temporary()) : digest_.finish();
  if (!expected.empty() && digest != expected)
    throw Error(fmt::format("{}: expected sha256 {}, got {}", path_.string(), expected, digest),
                "what it was made from is damaged; copy or download it again");
  if (file_) file_->commit();
  return digest;
}

}  // namespace elastify
