#include "io/gguf.h"

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <limits>

#include "base/hash.h"
#include "support/bytes.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

// Builds a GGUF file by hand, record by record.
class GgufBytes {
 public:
  GgufBytes(uint64_t n_tensors, uint64_t n_keys, uint32_t version = 3) {
    bytes_.text("GGUF").u32(version).u64(n_tensors).u64(n_keys);
  }
  GgufBytes& string(std::string_view text) {
    bytes_.u64(text.size()).text(text);
    return *this;
  }
  GgufBytes& key(std::string_view name, uint32_t type) {
    string(name);
    bytes_.u32(type);
    return *this;
  }
  GgufBytes& key_u32(std::string_view name, uint32_t value) {
    key(name, 4);
    bytes_.u32(value);
    return *this;
  }
  GgufBytes& array(std::string_view name, uint32_t type, uint64_t n) {
    key(name, 9);
    bytes_.u32(type).u64(n);
    return *this;
  }
  /// `ne` innermost first, as in the file
  GgufBytes& tensor(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset) {
    string(name);
    bytes_.u32(static_cast<uint32_t>(ne.size()));
    for (const uint64_t dim : ne) bytes_.u64(dim);
    bytes_.u32(type).u64(offset);
    return *this;
  }
  GgufBytes& data(size_t n, size_t alignment = 32) {
    bytes_.pad(alignment);
    bytes_.zeros(n);
    return *this;
  }
  Bytes& raw() { return bytes_; }
  operator std::string() const { return bytes_; }

 private:
  Bytes bytes_;
};

// The message of the error that opening a file with these bytes gives, without the file's name.
std::string refusal(const TemporaryDirectory& directory, const std::string& bytes) {
  const fs::path path = directory / "model.gguf";
  write_bytes(path, bytes);
  const std::string message = message_of([&] { GgufFile::open(path); });
  const std::string prefix = path.string() + ": ";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : "not naming the file: " + message;
}

GgufMetadata all_types() {
  GgufMetadata metadata;
  metadata.set("u8", uint8_t{200});
  metadata.set("i8", int8_t{-100});
  metadata.set("u16", uint16_t{60'000});
  metadata.set("i16", int16_t{-30'000});
  metadata.set("u32", uint32_t{4'000'000'000});
  metadata.set("i32", int32_t{-2'000'000'000});
  metadata.set("f32", 1.25F);
  metadata.set("bool", true);
  metadata.set("string", std::string("a\0b", 3));
  metadata.set("u64", uint64_t{1} << 63);
  metadata.set("i64", std::numeric_limits<int64_t>::min());
  metadata.set("f64", 0.1);
  metadata.set("array.u8", GgufArray{std::vector<uint8_t>{1, 2}});
  metadata.set("array.i8", GgufArray{std::vector<int8_t>{-1}});
  metadata.set("array.u16", GgufArray{std::vector<uint16_t>{1}});
  metadata.set("array.i16", GgufArray{std::vector<int16_t>{-1}});
  metadata.set("array.u32", GgufArray{std::vector<uint32_t>{}});
  metadata.set("array.i32", GgufArray{std::vector<int32_t>{3, -4}});
  metadata.set("array.f32", GgufArray{std::vector<float>{0.5F, -0.5F}});
  metadata.set("array.bool", GgufArray{std::vector<bool>{true, false, true}});
  metadata.set("array.string", GgufArray{std::vector<std::string>{"", "<s>"}});
  metadata.set("array.u64", GgufArray{std::vector<uint64_t>{~uint64_t{0}}});
  metadata.set("array.i64", GgufArray{std::vector<int64_t>{-1}});
  metadata.set("array.f64", GgufArray{std::vector<double>{0.1}});
  return metadata;
}

std::string write_model(const fs::path& path, const GgufMetadata& metadata,
                        const std::vector<TensorInfo>& infos) {
  GgufWriter writer(path, metadata, infos);
  uint8_t next = 0;
  for (const TensorInfo& tensor : infos) {
    std::vector<std::byte> bytes(n_bytes(tensor.dtype, tensor.shape));
    for (std::byte& byte : bytes) byte = std::byte{next++};
    const size_t half = bytes.size() / 2;
    writer.write(std::span(bytes).first(half));
    writer.write(std::span(bytes).subspan(half));
  }
  return writer.finish();
}

const std::vector<TensorInfo> kTensors = {{"token_embd.weight", DType::kQ8_0, {3, 64}},
                                          {"blk.0.attn_norm.weight", DType::kF32, {5}},
                                          {"blk.0.attn_q.weight", DType::kQ4_K, {2, 256}},
                                          {"blk.0.conv.weight", DType::kF16, {2, 3, 4, 5}}};

void read_all(const fs::path& path) {
  const GgufFile file = GgufFile::open(path);
  uint64_t sum = 0;
  for (const TensorInfo& info : file.tensors()) {
    const HostTensor tensor = file.tensor(info.name);
    sum += sum_of(tensor.bytes) + sum_of(convert(tensor, DType::kF32).bytes);
  }
  for (const auto& [key, value] : file.metadata().entries()) sum += key.size() + value.index();
  CHECK(sum != 1);
}

}  // namespace

TEST_CASE("gguf: keys and tensors are read back as written, with the exact type of every value") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  const std::string digest = write_model(path, all_types(), kTensors);
  CHECK(digest == sha256_file(path));
  CHECK(GgufFile::has_magic(path));

  const GgufFile file = GgufFile::open(path);
  CHECK(file.version() == 3);
  const GgufMetadata expected = all_types();
  REQUIRE(file.metadata().entries().size() == expected.entries().size());
  for (size_t i = 0; i < expected.entries().size(); ++i) {
    const auto& [key, value] = expected.entries()[i];
    CAPTURE(key);
    CHECK(file.metadata().entries()[i].first == key);
    const GgufValue& found = file.metadata().entries()[i].second;
    REQUIRE(found.index() == value.index());
    if (const auto* array = std::get_if<GgufArray>(&value)) {
      CHECK(std::get<GgufArray>(found).values == array->values);
      CHECK(std::get<GgufArray>(found).size() == array->size());
    } else {
      CHECK(std::visit([&](const auto& held) { return GgufValue(held).index() == found.index(); }, value));
    }
  }
  CHECK(std::get<std::string>(*file.metadata().find("string")) == std::string("a\0b", 3));
  CHECK(std::get<int64_t>(*file.metadata().find("i64")) == std::numeric_limits<int64_t>::min());

  REQUIRE(file.tensors().size() == kTensors.size());
  uint8_t next = 0;
  for (size_t i = 0; i < kTensors.size(); ++i) {
    CHECK(file.tensors()[i].name == kTensors[i].name);
    const HostTensor tensor = file.tensor(kTensors[i].name);
    CHECK(tensor.dtype == kTensors[i].dtype);
    CHECK(tensor.shape == kTensors[i].shape);
    REQUIRE(tensor.bytes.size() == n_bytes(tensor.dtype, tensor.shape));
    for (const std::byte byte : tensor.bytes) REQUIRE(byte == std::byte{next++});
  }
}

TEST_CASE("gguf: writing a file again from what was read gives the same bytes") {
  const TemporaryDirectory directory;
  write_model(directory / "a", all_types(), kTensors);
  const GgufFile file = GgufFile::open(directory / "a");
  write_model(directory / "b", file.metadata(), file.tensors());
  CHECK(read_bytes(directory / "a") == read_bytes(directory / "b"));
}

TEST_CASE("gguf: shapes are outermost first, in the file innermost first") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  write_bytes(path, GgufBytes(1, 0).tensor("w", {64, 3}, 8, 0).data(3 * 68));
  CHECK(GgufFile::open(path).tensor("w").shape == Shape{3, 64});
  write_model(directory / "written.gguf", {}, {{"w", DType::kQ8_0, {3, 64}}});
  const std::string expected = GgufBytes(1, 0).tensor("w", {64, 3}, 8, 0);
  CHECK(read_bytes(directory / "written.gguf").substr(0, expected.size()) == expected);
}

TEST_CASE("gguf: version 2, other alignments, an unpadded last tensor and bytes after the end are read") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  write_bytes(path, GgufBytes(1, 0, 2).tensor("w", {3}, 0, 0).data(12));
  CHECK(GgufFile::open(path).version() == 2);
  write_bytes(path, GgufBytes(2, 1)
                        .key_u32("general.alignment", 128)
                        .tensor("a", {3}, 0, 0)
                        .tensor("b", {3}, 0, 128)
                        .data(128 + 12, 128));
  const HostTensor b = GgufFile::open(path).tensor("b");
  CHECK(b.bytes.size() == 12);
  write_bytes(path, std::string(GgufBytes(1, 0).tensor("w", {3}, 0, 0).data(12)) + "anything");
  CHECK(GgufFile::open(path).tensors().size() == 1);
  write_bytes(path, GgufBytes(0, 0));
  CHECK(GgufFile::open(path).tensors().empty());
}

TEST_CASE("gguf: the writer pads tensors to the alignment that the metadata asks for") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  GgufMetadata metadata;
  metadata.set("general.alignment", uint32_t{65536});
  write_model(path, metadata, {{"a", DType::kF32, {3}}, {"b", DType::kF32, {3}}});
  CHECK(fs::file_size(path) == 3 * 65536);
  CHECK(GgufFile::open(path).tensor("b").bytes[0] == std::byte{12});
}

TEST_CASE("gguf: corrupt files are refused, saying where, what was expected and what was found") {
  struct Case {
    std::string name;
    std::string bytes;
    std::string message;
  };
  const uint64_t huge = ~uint64_t{0};
  const std::string supported =
      "; supported are 0 (f32), 1 (f16), 30 (bf16), 2 (q4_0), 3 (q4_1), 6 (q5_0), 7 (q5_1), 8 (q8_0), 12 "
      "(q4_k), "
      "13 (q5_k), 14 (q6_k)";
  const auto with_alignment = [](uint32_t alignment) {
    return std::string(GgufBytes(0, 1).key_u32("general.alignment", alignment));
  };
  const std::string alignment = "key general.alignment: expected a power of two from 8 to 1048576, got ";
  const auto one_tensor = [](const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset = 0) {
    return std::string(GgufBytes(1, 0).tensor("w", ne, type, offset).data(64));
  };
  const auto value = [](uint32_t type, const std::function<void(Bytes&)>& add) {
    GgufBytes file(0, 1);
    file.key("k", type);
    add(file.raw());
    return std::string(file);
  };

  const std::vector<Case> cases = {
      {"empty file", "", "not a GGUF file: expected it to start with GGUF, got \"\""},
      {"half a magic", "GG", "not a GGUF file: expected it to start with GGUF, got \"GG\""},
      {"another magic", std::string("PK\x03\x04....", 8),
       "not a GGUF file: expected it to start with GGUF, got \"PK\\x03\\x04\""},
      {"magic alone", "GGUF", "version: needs 4 bytes from byte 4 on, but the file has 4 bytes"},
      {"version 0", GgufBytes(0, 0, 0), "expected GGUF version 2 or 3, got 0"},
      {"version 1", GgufBytes(0, 0, 1), "expected GGUF version 2 or 3, got 1"},
      {"version 4", GgufBytes(0, 0, 4), "expected GGUF version 2 or 3, got 4"},
      {"big-endian", GgufBytes(0, 0, 0x03000000),
       "expected a little-endian file, got version 0x03000000, which is 3 big-endian"},
      {"header cut off", std::string(GgufBytes(0, 0)).substr(0, 20),
       "number of keys: needs 8 bytes from byte 16 on, but the file has 20 bytes"},
      {"more keys than bytes", GgufBytes(0, huge),
       "18446744073709551615 keys do not fit into the remaining 0 bytes"},
      {"more tensors than bytes", std::string(GgufBytes(huge, 0)) + "....",
       "18446744073709551615 tensors do not fit into the remaining 4 bytes"},

      {"key name beyond the end", GgufBytes(0, 1).raw().u64(huge).zeros(8),
       "name of key 0: needs 18446744073709551615 bytes from byte 32 on, but the file has 40 bytes"},
      {"unknown value type", value(13, [](Bytes& b) { b.zeros(8); }),
       "key k: unknown value type 13; known are 0 to 12"},
      {"value cut off", value(10, [](Bytes& b) { b.zeros(4); }),
       "key k: value: needs 8 bytes from byte 37 on, but the file has 41 bytes"},
      {"bool that is not one", value(7, [](Bytes& b) { b.u8(2); }),
       "key k: expected a bool of 0 or 1, got 2"},
      {"string beyond the end", value(8, [](Bytes& b) { b.u64(5).text("abcd"); }),
       "key k: value: needs 5 bytes from byte 45 on, but the file has 49 bytes"},
      {"array of arrays", value(9, [](Bytes& b) { b.u32(9).u64(1).zeros(20); }),
       "key k: arrays of arrays are not supported"},
      {"array of an unknown type", value(9, [](Bytes& b) { b.u32(77).u64(1); }),
       "key k: unknown value type 77; known are 0 to 12"},
      {"array longer than the file", value(9, [](Bytes& b) { b.u32(4).u64(3).zeros(8); }),
       "key k: 3 elements do not fit into the remaining 8 bytes"},
      {"array whose bytes overflow", value(9, [&](Bytes& b) { b.u32(10).u64(uint64_t{1} << 61).zeros(8); }),
       "key k: 2305843009213693952 elements do not fit into the remaining 8 bytes"},
      {"strings longer than the file", value(9, [&](Bytes& b) { b.u32(8).u64(huge).zeros(8); }),
       "key k: 18446744073709551615 strings do not fit into the remaining 8 bytes"},
      {"string in an array beyond the end",
       value(9, [&](Bytes& b) { b.u32(8).u64(2).u64(1).text("a").u64(huge); }),
       "key k: element 1: needs 18446744073709551615 bytes from byte 66 on, but the file has 66 bytes"},
      {"bad bool in an array", value(9, [&](Bytes& b) { b.u32(7).u64(2).u8(1).u8(255); }),
       "key k: expected a bool of 0 or 1, got 255"},
      {"key twice", GgufBytes(0, 2).key_u32("k", 1).key_u32("k", 1), "key k: the key appears twice"},
      {"control characters in a key", GgufBytes(0, 1).key("a\nb\x01", 99).raw().zeros(9),
       "key a\\x0ab\\x01: unknown value type 99; known are 0 to 12"},

      {"alignment 0", with_alignment(0), alignment + "0"},
      {"alignment 4", with_alignment(4), alignment + "4"},
      {"alignment 48", with_alignment(48), alignment + "48"},
      {"alignment 2^31", with_alignment(0x80000000), alignment + "2147483648"},
      {"alignment of a wrong type", GgufBytes(0, 1).key("general.alignment", 8).string("32"),
       "key general.alignment: expected an integer below 2^63, got string"},

      {"tensor name beyond the end", std::string(GgufBytes(1, 0).raw().u64(1000).zeros(40)),
       "name of tensor 0: needs 1000 bytes from byte 32 on, but the file has 72 bytes"},
      {"tensor twice", GgufBytes(2, 0).tensor("w", {8}, 0, 0).tensor("w", {8}, 0, 32).data(64),
       "tensor w: the name appears twice"},
      {"no dimensions", one_tensor({}, 0), "tensor w: expected 1 to 4 dimensions, got 0"},
      {"five dimensions", one_tensor({1, 1, 1, 1, 1}, 0), "tensor w: expected 1 to 4 dimensions, got 5"},
      {"record cut off", std::string(one_tensor({8, 8, 8}, 0)).substr(0, 63),
       "tensor w: type: needs 4 bytes from byte 61 on, but the file has 63 bytes"},
      {"dimension of zero", one_tensor({8, 0}, 0),
       "tensor w: expected dimension 1 to be from 1 to 9223372036854775807, got 0"},
      {"dimension above int64", one_tensor({huge}, 0),
       "tensor w: expected dimension 0 to be from 1 to 9223372036854775807, got 18446744073709551615"},
      {"dimensions whose product overflows", one_tensor({1ULL << 32, 1ULL << 32}, 0),
       "tensor w: shape [4294967296, 4294967296] of f32 has more than 18446744073709551615 bytes"},
      {"dimensions whose product overflows further", one_tensor({1, 1ULL << 32, 1ULL << 32}, 0),
       "tensor w: shape [4294967296, 4294967296, 1] has more than 9223372036854775807 elements"},
      {"bytes that overflow", one_tensor({1ULL << 62}, 0),
       "tensor w: a row of 4611686018427387904 f32 elements is too large"},
      {"padding that overflows", one_tensor({(1ULL << 62) - 1}, 0),
       "tensor w: shape [4611686018427387903] of f32 ends after byte 2^64"},
      {"position that overflows", one_tensor({(1ULL << 62) - 9}, 0),
       "tensor w: shape [4611686018427387895] ends after byte 2^64"},
      {"unknown type", one_tensor({32}, 16), "tensor w: unsupported ggml type 16" + supported},
      {"absurd type", one_tensor({32}, 0xffffffff), "tensor w: unsupported ggml type 4294967295" + supported},
      {"row of half a block", one_tensor({48}, 8),
       "tensor w: 48 elements are not a multiple of the 32 in a block of q8_0"},
      {"first offset not zero", one_tensor({4}, 0, 32),
       "tensor w: expected offset 0, the end of the tensor before it, got 32"},
      {"gap between tensors", GgufBytes(2, 0).tensor("a", {4}, 0, 0).tensor("b", {4}, 0, 64).data(96),
       "tensor b: expected offset 32, the end of the tensor before it, got 64"},
      {"overlapping tensors", GgufBytes(2, 0).tensor("a", {4}, 0, 0).tensor("b", {4}, 0, 16).data(96),
       "tensor b: expected offset 32, the end of the tensor before it, got 16"},
      {"offset near 2^64", one_tensor({4}, 0, huge - 8),
       "tensor w: expected offset 0, the end of the tensor before it, got 18446744073709551607"},
      {"tensor that ends after the end of the file", one_tensor({17}, 0),
       "tensor w: ends at byte 132, but the file has 128 bytes"},
      {"second tensor cut off", GgufBytes(2, 0).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, 32).data(60),
       "tensor b: ends at byte 160, but the file has 156 bytes"},
      {"no data at all", GgufBytes(1, 0).tensor("w", {8}, 0, 0),
       "tensor w: ends at byte 96, but the file has 57 bytes"},
  };
  const TemporaryDirectory directory;
  for (const Case& c : cases) {
    CAPTURE(c.name);
    CHECK(refusal(directory, c.bytes) == c.message);
  }
}

TEST_CASE("gguf: a truncated file is not taken for a whole one") {
  const TemporaryDirectory directory;
  write_model(directory / "valid.gguf", all_types(), kTensors);
  const std::string valid = read_bytes(directory / "valid.gguf");
  const size_t used = valid.size() - 16;  // the last tensor is 240 bytes, padded to 256
  for (size_t size = 0; size < used; ++size) {
    CAPTURE(size);
    REQUIRE(refusal(directory, valid.substr(0, size)) != "not naming the file: no error");
  }
  CHECK(refusal(directory, valid.substr(0, used)) == "not naming the file: no error");
}

TEST_CASE("gguf: mutated files are read or refused") {
  const TemporaryDirectory directory;
  write_model(directory / "valid.gguf", all_types(), kTensors);
  const MutationCount count = read_mutations(read_bytes(directory / "valid.gguf"), 4000, read_all);
  CHECK(count.accepted > 100);
  CHECK(count.refused > 1000);
}

TEST_CASE("gguf: metadata look-ups take any width of integer and refuse other types") {
  const GgufMetadata metadata = all_types();
  CHECK(metadata.integer("u8") == 200);
  CHECK(metadata.integer("i64") == std::numeric_limits<int64_t>::min());
  CHECK(metadata.integer("absent") == std::nullopt);
  CHECK(metadata.number("f32") == 1.25);
  CHECK(metadata.number("i16") == -30'000.0);
  CHECK(metadata.boolean("bool") == true);
  CHECK(metadata.string("string") == std::string("a\0b", 3));
  CHECK(metadata.integers("array.i32") == std::vector<int64_t>{3, -4});
  CHECK(metadata.integers("array.u32") == std::vector<int64_t>{});
  REQUIRE(metadata.floats("array.f32") != nullptr);
  CHECK(*metadata.floats("array.f32") == std::vector<float>{0.5F, -0.5F});
  REQUIRE(metadata.strings("array.string") != nullptr);
  CHECK(metadata.strings("array.string")->at(1) == "<s>");
  CHECK(metadata.strings("absent") == nullptr);
  CHECK(metadata.require_integer("i32") == -2'000'000'000);

  CHECK(message_of([&] { metadata.integer("u64"); }) ==
        "key u64: expected an integer below 2^63, got uint64 9223372036854775808");
  CHECK(message_of([&] { metadata.integer("bool"); }) ==
        "key bool: expected an integer below 2^63, got bool");
  CHECK(message_of([&] { metadata.number("string"); }) == "key string: expected a number, got string");
  CHECK(message_of([&] { metadata.boolean("u8"); }) == "key u8: expected a bool, got uint8 200");
  CHECK(message_of([&] { metadata.string("u8"); }) == "key u8: expected a string, got uint8 200");
  CHECK(message_of([&] { metadata.strings("array.i32"); }) ==
        "key array.i32: expected an array of string, got array of int32");
  CHECK(message_of([&] { metadata.floats("f32"); }) == "key f32: expected an array of float32, got float32");
  CHECK(message_of([&] { metadata.integers("array.f32"); }) ==
        "key array.f32: expected an array of integers, got array of float32");
  CHECK(message_of([&] { metadata.integers("array.u64"); }) ==
        "key array.u64: expected integers below 2^63, got 18446744073709551615");
  CHECK(message_of([&] { metadata.require_string("absent"); }) ==
        "key absent: expected a string, but there is no such key");
}

TEST_CASE("gguf: metadata keeps its order when values are replaced and keys erased") {
  GgufMetadata metadata;
  for (const char* key : {"a", "b", "c", "d"}) metadata.set(key, uint32_t{1});
  metadata.set("c", std::string("new"));
  metadata.erase("b");
  metadata.erase("absent");
  metadata.set("b", true);
  std::string order;
  for (const auto& [key, value] : metadata.entries()) order += key;
  CHECK(order == "acdb");
  CHECK(metadata.string("c") == "new");
  CHECK(metadata.integer("d") == 1);
  CHECK(metadata.boolean("b") == true);
}

TEST_CASE("gguf: the writer refuses what stock runtimes refuse, and leaves no file") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  const auto refused = [&](const std::vector<TensorInfo>& infos, const GgufMetadata& metadata = {}) {
    const std::string message = message_of([&] { GgufWriter(path, metadata, infos); });
    CHECK(fs::is_empty(directory.path()));
    return message.substr(path.string().size());
  };
  CHECK(refused({{std::string(64, 'n'), DType::kF32, {1}}}) ==
        ": tensor " + std::string(64, 'n') + ": expected a name of 1 to 63 bytes, got 64");
  CHECK(refused({{"w", DType::kF32, {1}}, {"w", DType::kF32, {1}}}) == ": tensor w: the name is given twice");
  CHECK(refused({{"w", DType::kF32, {}}}) == ": tensor w: expected 1 to 4 dimensions, got shape []");
  CHECK(refused({{"w", DType::kF32, {4, 0}}}) ==
        ": tensor w: expected at least one element, got shape [4, 0]");
  CHECK(refused({{"w", DType::kQ8_0, {4, 48}}}) ==
        ": tensor w: 48 elements are not a multiple of the 32 in a block of q8_0");
  GgufMetadata metadata;
  metadata.set("general.alignment", uint32_t{16});
  CHECK(refused({}, metadata) ==
        ": key general.alignment: expected a power of two from 32 to 1048576, got 16");
}

TEST_CASE("gguf: the writer refuses more or fewer bytes than were declared, and leaves no file") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  const std::vector<std::byte> bytes(16);
  {
    GgufWriter writer(path, {}, {{"a", DType::kF32, {3}}, {"b", DType::kF32, {1}}});
    CHECK(message_of([&] { writer.write(bytes); }) ==
          path.string() + ": tensor a: expected at most 12 more bytes, got 16");
    writer.write(std::span(bytes).first(12));
    CHECK(message_of([&] { writer.finish(); }) == path.string() + ": tensor b: 4 bytes are missing");
    writer.write(std::span(bytes).first(4));
    CHECK(message_of([&] { writer.write(bytes); }) ==
          path.string() + ": got 16 more bytes after the last of 2 tensors");
  }
  CHECK(fs::is_empty(directory.path()));
}

TEST_CASE("gguf: with Target::kNowhere, size and SHA-256 are those of the file that would be written") {
  const TemporaryDirectory directory;
  const std::vector<std::byte> bytes(12, std::byte{7});
  const auto written = [&](const std::string& name, GgufWriter::Target target) {
    GgufWriter writer(directory / name, {}, {{"a", DType::kF32, {3}}}, target);
    CHECK(writer.current() == "a");
    writer.write(bytes);
    CHECK(writer.current().empty());
    writer.append(bytes);
    const std::string sha256 = writer.finish();
    return std::pair(sha256, writer.size());
  };
  const auto file = written("file", GgufWriter::Target::kFile);
  CHECK(file == written("nowhere", GgufWriter::Target::kNowhere));
  CHECK(file.second == fs::file_size(directory / "file"));
  CHECK(!fs::exists(directory / "nowhere"));
}

TEST_CASE("gguf: replacing keys gives the same file as writing them in the first place") {
  const TemporaryDirectory directory;
  const std::vector<std::byte> bytes(12, std::byte{7});
  const auto keys = [](const std::string& value) {
    GgufMetadata metadata;
    metadata.set("sha256", value);
    return metadata;
  };
  GgufWriter at_once(directory / "at once", keys("known"), {{"a", DType::kF32, {3}}});
  at_once.write(bytes);
  GgufWriter later(directory / "later", keys("?????"), {{"a", DType::kF32, {3}}});
  later.write(bytes);
  CHECK(message_of([&] { later.replace(keys(std::string(32, 'x'))); }) ==
        (directory / "later").string() + ": expected 96 bytes of keys and tables, got 128");
  later.replace(keys("known"));
  CHECK(later.finish() == at_once.finish());
  CHECK(sha256_file(directory / "later") == sha256_file(directory / "at once"));
}

TEST_CASE("gguf: an absent tensor is named") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.gguf";
  write_model(path, {}, kTensors);
  const GgufFile file = GgufFile::open(path);
  CHECK(file.contains("token_embd.weight"));
  CHECK(!file.contains("output.weight"));
  CHECK(message_of([&] { file.tensor("output.weight"); }) ==
        path.string() + ": there is no tensor output.weight");
}

TEST_CASE("gguf: the vocabularies of llama.cpp are read, and written again byte for byte") {
  if (!has_shared_data()) return;
  const TemporaryDirectory directory;
  for (const char* name : {"bert-bge", "gpt-2", "llama-spm"}) {
    CAPTURE(name);
    const fs::path path = shared_data() / "models/gguf-vocab" / (std::string("ggml-vocab-") + name + ".gguf");
    const GgufFile file = GgufFile::open(path);
    CHECK(file.tensors().empty());
    REQUIRE(file.metadata().strings("tokenizer.ggml.tokens") != nullptr);
    CHECK(file.metadata().strings("tokenizer.ggml.tokens")->size() > 30'000);
    GgufWriter(directory / name, file.metadata(), {}).finish();
    const std::string original = read_bytes(path), written = read_bytes(directory / name);
    CHECK(GgufFile::open(directory / name).metadata().entries().size() == file.metadata().entries().size());
    const uint32_t version = file.version();
    CHECK(original.substr(8, std::min(original.size(), written.size()) - 8) ==
          written.substr(8, std::min(original.size(), written.size()) - 8));
    CHECK((version == 2 || version == 3));
  }
}
