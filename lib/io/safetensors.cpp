#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/byte_reader.h"

namespace elastify {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr uint64_t kDataAlignment = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

// The types of the format. Tensors of a type without a DType are checked but left out.
struct StoredType {
  std::string_view name;
  uint64_t n_bytes;
  std::optional<DType> dtype;
};
constexpr std::array<StoredType, 16> kStoredTypes = {{
    {"F32", 4, DType::kF32},
    {"F16", 2, DType::kF16},
    {"BF16", 2, DType::kBF16},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"U64", 8, {}},
    {"I32", 4, {}},
    {"U32", 4, {}},
    {"I16", 2, {}},
    {"U16", 2, {}},
    {"I8", 1, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
    {"F8_E4M3", 1, {}},
    {"F8_E5M2", 1, {}},
    {"C64", 8, {}},
}};

const StoredType& stored_type(std::string_view name) {
  std::string known;
  for (const StoredType& type : kStoredTypes) {
    if (type.name == name) return type;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", type.name);
  }
  fail("unknown dtype {}; known are {}", printable(name), known);
}

std::string_view stored_name(DType dtype) {
  for (const StoredType& type : kStoredTypes)
    if (type.dtype == dtype) return type.name;
  fail("{} cannot be stored in a safetensors file; F32, F16 and BF16 can", info(dtype).name);
}

struct Entry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<Shape> shape;
  std::vector<uint64_t> offsets;

  uint64_t begin() const { return offsets[0]; }
  uint64_t end() const { return offsets[1]; }
};

// Takes the header's JSON event by event: duplicates are noticed, and nothing unneeded is built.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a bool"); }
  bool number_integer(int64_t value) override { unexpected(fmt::format("{}", value)); }
  bool number_float(double, const std::string& text) override { unexpected(printable(text)); }
  bool binary(nlohmann::json::binary_t&) override { unexpected("binary data"); }

  bool number_unsigned(uint64_t value) override {
    if (where_ != Where::kShape && where_ != Where::kOffsets) unexpected(fmt::format("{}", value));
    if (where_ == Where::kOffsets) {
      entry().offsets.push_back(value);
      return true;
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      unexpected(fmt::format("{}", value));
    entry().shape->push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& text) override {
    if (where_ == Where::kMetadata)
      metadata[field_] = text;
    else if (where_ == Where::kTensor && field_ == "dtype")
      entry().dtype = text;
    else
      unexpected(fmt::format("the string \"{}\"", printable(text)));
    return true;
  }

  bool start_object(size_t) override {
    if (where_ == Where::kStart)
      where_ = Where::kTop;
    else if (where_ == Where::kTop)
      where_ = name_ == kMetadataKey ? Where::kMetadata : Where::kTensor;
    else
      unexpected("an object");
    return true;
  }

  bool key(std::string& text) override {
    if (where_ == Where::kTop) {
      name_ = text;
      field_.clear();
      fields_.clear();
      if (!names_.insert(text).second) fail("{}: the name appears twice", place());
      if (text != kMetadataKey) entries.push_back({text, {}, {}, {}});
      return true;
    }
    field_ = text;
    if (!fields_.insert(text).second) fail("{}: the key appears twice", place());
    if (where_ == Where::kTensor && text != "dtype" && text != "shape" && text != "data_offsets")
      fail("{}: unknown key; known are dtype, shape and data_offsets", place());
    return true;
  }

  bool end_object() override {
    where_ = where_ == Where::kTop ? Where::kStart : Where::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (where_ != Where::kTensor || field_ == "dtype") unexpected("an array");
    if (field_ == "shape") {
      entry().shape.emplace();
      where_ = Where::kShape;
    } else {
      where_ = Where::kOffsets;
    }
    return true;
  }

  bool end_array() override {
    where_ = Where::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail("header: not JSON from its byte {} on", position > 0 ? position - 1 : 0);
  }

 private:
  enum class Where { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  Entry& entry() { return entries.back(); }

  std::string place() const {
    if (name_.empty() && where_ == Where::kStart) return "header";
    std::string result = name_ == kMetadataKey ? name_ : fmt::format("tensor {}", printable(name_));
    if (!field_.empty()) result += fmt::format(": {}", printable(field_));
    return result;
  }

  [[noreturn]] void unexpected(std::string_view found) const {
    std::string_view expected = "an object";
    if (where_ == Where::kMetadata) expected = "a string";
    if (where_ == Where::kTensor) expected = field_ == "dtype" ? "a string" : "an array";
    if (where_ == Where::kShape || where_ == Where::kOffsets) expected = "integers from 0 to 2^63 - 1";
    fail("{}: expected {}, got {}", place(), expected, found);
  }

  Where where_ = Where::kStart;
  std::string name_;   // of the tensor, or __metadata__
  std::string field_;  // key inside it
  std::set<std::string, std::less<>> names_;
  std::set<std::string, std::less<>> fields_;
};

// Bytes of the tensor. Throws unless all its fields are present and agree with each other.
uint64_t checked_size(const Entry& entry) {
  if (!entry.dtype) fail("dtype is missing");
  if (!entry.shape) fail("shape is missing");
  const StoredType& type = stored_type(*entry.dtype);
  uint64_t size = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(n_elements(*entry.shape)), type.n_bytes, &size))
    fail("shape {} of {} has more than 2^64 bytes", to_string(*entry.shape), type.name);
  if (entry.offsets.size() != 2) fail("data_offsets: expected 2 numbers, got {}", entry.offsets.size());
  if (entry.begin() > entry.end())
    fail("data_offsets: begins at {}, after its end at {}", entry.begin(), entry.end());
  if (entry.end() - entry.begin() != size)
    fail("shape {} of {} has {} bytes, but data_offsets has {}", to_string(*entry.shape), type.name, size,
         entry.end() - entry.begin());
  return size;
}

std::string header_json(const std::vector<TensorInfo>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  auto json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json[kMetadataKey] = metadata;
  uint64_t offset = 0;
  std::set<std::string_view> names = {kMetadataKey};
  for (const TensorInfo& tensor : tensors) {
    with_context(fmt::format("tensor {}", printable(tensor.name)), [&] {
      if (!names.insert(tensor.name).second) fail("the name is given twice or reserved");
      uint64_t end = 0;
      if (__builtin_add_overflow(offset, n_bytes(tensor.dtype, tensor.shape), &end))
        fail("ends after byte 2^64");
      // emplace_back() rather than [], which in an ordered object searches all keys before it.
      json.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
          tensor.name, nlohmann::ordered_json{{"dtype", stored_name(tensor.dtype)},
                                              {"shape", tensor.shape},
                                              {"data_offsets", {offset, end}}});
      offset = end;
    });
  }
  try {
    return json.dump();
  } catch (const nlohmann::json::exception&) {
    fail("a tensor name or metadata value is not UTF-8");
  }
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const fs::path& path) {
  SafetensorsFile result;
  result.file_ = MappedFile::open(path);
  with_context(path.string(), [&] { result.parse(); });
  return result;
}

void SafetensorsFile::parse() {
  const auto bytes = file_->bytes();
  ByteReader reader(bytes);
  const auto header_size = reader.read<uint64_t>("header length");
  if (header_size > kMaxHeader)
    fail("not a safetensors file: expected a header of at most {} bytes, got {}", kMaxHeader, header_size);
  const auto header = reader.take(header_size, "header");
  if (header.empty() || header[0] != std::byte{'{'})
    fail("not a safetensors file: the header does not start with {{");

  HeaderHandler handler;
  const auto* text = reinterpret_cast<const char*>(header.data());
  // The parser takes a zero byte for the end of the text and would ignore what follows.
  if (const void* zero = std::memchr(text, 0, header.size()))
    fail("header: not JSON from its byte {} on", static_cast<const char*>(zero) - text);
  nlohmann::json::sax_parse(text, text + header.size(), &handler);
  metadata_ = std::move(handler.metadata);

  std::vector<Entry>& entries = handler.entries;
  for (const Entry& entry : entries)
    with_context(fmt::format("tensor {}", printable(entry.name)), [&] { checked_size(entry); });
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });

  const uint64_t data_start = reader.position();
  const uint64_t data_size = reader.left();
  uint64_t expected = 0;
  const std::string* before = nullptr;
  for (Entry& entry : entries) {
    const std::string place = fmt::format("tensor {}", printable(entry.name));
    if (entry.begin() != expected) {
      const std::string end_before = before == nullptr ? "the data begins at byte 0"
                                                       : fmt::format("tensor {} before it ends at byte {}",
                                                                     printable(*before), expected);
      fail("{}: begins at byte {} of the data, but {}", place, entry.begin(), end_before);
    }
    if (entry.end() > data_size)
      throw Error(fmt::format("{}: ends at byte {} of the data, but the file has {} bytes of data", place,
                              entry.end(), data_size),
                  "the file is cut off; copy or download it again");
    expected = entry.end();
    before = &entry.name;
    const StoredType& type = stored_type(*entry.dtype);
    if (!type.dtype) {
      skipped_.emplace(entry.name, type.name);
      continue;
    }
    index_.emplace(entry.name, tensors_.size());
    data_.push_back(bytes.subspan(data_start + entry.begin(), entry.end() - entry.begin()));
    tensors_.push_back({entry.name, *type.dtype, std::move(*entry.shape)});
  }
  if (expected != data_size)
    fail("the tensors end at byte {} of the data, but the file has {} bytes of data", expected, data_size);
}

bool SafetensorsFile::contains(std::string_view name) const {
  return index_.find(name) != index_.end();
}

HostTensor SafetensorsFile::tensor(std::string_view name) const {
  const std::string place = fmt::format("{}: tensor {}", file_->path().string(), printable(name));
  if (const auto skipped = skipped_.find(name); skipped != skipped_.end())
    fail("{}: expected F32, F16 or BF16, got {}", place, skipped->second);
  const auto found = index_.find(name);
  if (found == index_.end()) fail("{}: there is no such tensor", place);
  const TensorInfo& record = tensors_[found->second];
  const auto bytes = data_[found->second];
  const auto width = static_cast<uintptr_t>(info(record.dtype).block_bytes);
  if (reinterpret_cast<uintptr_t>(bytes.data()) % width == 0)
    return {record.dtype, record.shape, bytes, file_};
  HostTensor copy = HostTensor::allocate(record.dtype, record.shape);
  std::memcpy(copy.writable().data(), bytes.data(), bytes.size());
  return copy;
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path), tensors_(std::move(tensors)) {
  std::string header = with_context(path.string(), [&] { return header_json(tensors_, metadata); });
  header.resize((header.size() + 8 + kDataAlignment - 1) / kDataAlignment * kDataAlignment - 8, ' ');
  const uint64_t length = header.size();
  put(std::as_bytes(std::span(&length, 1)));
  put(std::as_bytes(std::span(header)));
  current_ = static_cast<size_t>(-1);
  next();
}

void SafetensorsWriter::put(std::span<const std::byte> bytes) {
  file_.write(bytes);
  digest_.update(bytes);
}

void SafetensorsWriter::next() {
  while (left_ == 0 && ++current_ < tensors_.size())
    left_ = n_bytes(tensors_[current_].dtype, tensors_[current_].shape);
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (current_ == tensors_.size())
    fail("{}: got {} more bytes after the last of {} tensors", file_.path().string(), bytes.size(),
         tensors_.size());
  if (bytes.size() > left_)
    fail("{}: tensor {}: expected at most {} more bytes, got {}", file_.path().string(),
         tensors_[current_].name, left_, bytes.size());
  put(bytes);
  left_ -= bytes.size();
  next();
}

std::string SafetensorsWriter::finish() {
  if (current_ < tensors_.size())
    fail("{}: tensor {}: {} bytes are missing", file_.path().string(), tensors_[current_].name, left_);
  file_.commit();
  return digest_.finish();
}

}  // namespace elastify
