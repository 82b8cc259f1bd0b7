#include "io/safetensors.h"

#include <doctest/doctest.h>

#include <cstring>
#include <string>

#include "support/bytes.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

// A file with this header and `n_data` bytes of data, whose n-th byte is n.
std::string file_of(std::string_view header, size_t n_data) {
  Bytes bytes;
  bytes.u64(header.size()).text(header);
  for (size_t i = 0; i < n_data; ++i) bytes.u8(static_cast<uint8_t>(i));
  return bytes;
}

std::string refusal(const TemporaryDirectory& directory, const std::string& bytes) {
  const fs::path path = directory / "model.safetensors";
  write_bytes(path, bytes);
  const std::string message = message_of([&] { SafetensorsFile::open(path); });
  const std::string prefix = path.string() + ": ";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : "not naming the file: " + message;
}

const std::vector<TensorInfo> kTensors = {{"model.embed_tokens.weight", DType::kBF16, {3, 5}},
                                          {"empty", DType::kF32, {0, 4}},
                                          {"a \"quoted\" name, \u00e9", DType::kF16, {2, 2, 2}},
                                          {"scalar", DType::kF32, {}},
                                          {"last", DType::kF32, {7}}};

std::string write_model(const fs::path& path, const std::map<std::string, std::string>& metadata = {}) {
  SafetensorsWriter writer(path, kTensors, metadata);
  uint8_t next = 0;
  for (const TensorInfo& info : kTensors) {
    std::vector<std::byte> bytes(n_bytes(info.dtype, info.shape));
    for (std::byte& byte : bytes) byte = std::byte{next++};
    const size_t part = bytes.size() / 3;
    writer.write(std::span(bytes).first(part));
    writer.write(std::span(bytes).subspan(part));
  }
  return writer.finish();
}

void read_all(const fs::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  uint64_t sum = 0;
  for (const TensorInfo& info : file.tensors()) {
    const HostTensor tensor = file.tensor(info.name);
    sum += sum_of(tensor.bytes) + sum_of(convert(tensor, DType::kF32).bytes);
  }
  CHECK(sum != 1);
}

}  // namespace

TEST_CASE("safetensors: tensors and metadata are read back as written") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"step", "12"}};
  const std::string digest = write_model(path, metadata);
  CHECK(digest == sha256_file(path));

  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.metadata() == metadata);
  CHECK(file.skipped().empty());
  REQUIRE(file.tensors().size() == kTensors.size());
  uint8_t next = 0;
  for (size_t i = 0; i < kTensors.size(); ++i) {
    CHECK(file.tensors()[i].name == kTensors[i].name);
    CHECK(file.contains(kTensors[i].name));
    const HostTensor tensor = file.tensor(kTensors[i].name);
    CHECK(tensor.dtype == kTensors[i].dtype);
    CHECK(tensor.shape == kTensors[i].shape);
    REQUIRE(tensor.bytes.size() == n_bytes(tensor.dtype, tensor.shape));
    for (const std::byte byte : tensor.bytes) REQUIRE(byte == std::byte{next++});
  }
}

TEST_CASE("safetensors: the same tensors give the same bytes, and the data begins at a multiple of 64") {
  const TemporaryDirectory directory;
  write_model(directory / "a");
  write_model(directory / "b");
  const std::string bytes = read_bytes(directory / "a");
  CHECK(bytes == read_bytes(directory / "b"));
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  CHECK((8 + header) % 64 == 0);
}

TEST_CASE("safetensors: tensors are listed in the order of their data, not in that of the header") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  write_bytes(path, file_of(R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},)"
                            R"("a":{"data_offsets":[0,2],"shape":[1],"dtype":"F16"}}   )",
                            10));
  const SafetensorsFile file = SafetensorsFile::open(path);
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == "a");
  CHECK(file.tensors()[1].name == "b");
}

TEST_CASE("safetensors: data that is unaligned in the file is returned aligned") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  write_bytes(path, file_of(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
  const HostTensor tensor = SafetensorsFile::open(path).tensor("w");
  CHECK(reinterpret_cast<uintptr_t>(tensor.bytes.data()) % 4 == 0);
  for (size_t i = 0; i < 8; ++i) CHECK(tensor.bytes[i] == static_cast<std::byte>(i));
}

TEST_CASE("safetensors: tensors of other types are left out, and asking for one says why") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  write_bytes(path, file_of(R"({"position_ids":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]},)"
                            R"("w":{"dtype":"BF16","shape":[1],"data_offsets":[16,18]}})",
                            18));
  const SafetensorsFile file = SafetensorsFile::open(path);
  REQUIRE(file.tensors().size() == 1);
  CHECK(file.tensors()[0].name == "w");
  CHECK(file.skipped().at("position_ids") == "I64");
  CHECK(!file.contains("position_ids"));
  CHECK(message_of([&] { file.tensor("position_ids"); }) ==
        path.string() + ": tensor position_ids: expected F32, F16 or BF16, got I64");
  CHECK(message_of([&] { file.tensor("x"); }) == path.string() + ": tensor x: there is no such tensor");
}

TEST_CASE("safetensors: corrupt files are refused, saying where, what was expected and what was found") {
  struct Case {
    std::string name;
    std::string bytes;
    std::string message;
  };
  const auto one = [](std::string_view fields, size_t n_data = 8) {
    return file_of(fmt::format(R"({{"w":{{{}}}}})", fields), n_data);
  };
  const auto shaped = [&](std::string_view shape) {
    return one(fmt::format(R"("dtype":"F32","shape":{},"data_offsets":[0,8])", shape));
  };
  const auto placed = [&](std::string_view offsets) {
    return one(fmt::format(R"("dtype":"F32","shape":[2],"data_offsets":{})", offsets));
  };
  const auto two = [](std::string_view a, std::string_view b) {
    return file_of(fmt::format(R"({{"a":{{"dtype":"F32","shape":[2],"data_offsets":{}}},)"
                               R"("b":{{"dtype":"F32","shape":[2],"data_offsets":{}}}}})",
                               a, b),
                   16);
  };
  const std::string integers = ": expected integers from 0 to 2^63 - 1, got ";
  const std::vector<Case> cases = {
      {"empty file", "", "header length: needs 8 bytes from byte 0 on, but the file has 0 bytes"},
      {"seven bytes", "1234567", "header length: needs 8 bytes from byte 0 on, but the file has 7 bytes"},
      {"header longer than the file", Bytes().u64(3).text("{}"),
       "header: needs 3 bytes from byte 8 on, but the file has 10 bytes"},
      {"absurd header length", Bytes().u64(~uint64_t{0}).text("{}"),
       "not a safetensors file: expected a header of at most 100000000 bytes, got 18446744073709551615"},
      {"another kind of file", "GGUF\x03" + std::string(40, '\0'),
       "not a safetensors file: expected a header of at most 100000000 bytes, got 14064895815"},
      {"empty header", file_of("", 0), "not a safetensors file: the header does not start with {"},
      {"header that is a list", file_of("[1]", 0),
       "not a safetensors file: the header does not start with {"},
      {"header that begins with a space", file_of(" {}", 0),
       "not a safetensors file: the header does not start with {"},
      {"JSON cut off", file_of(R"({"w":{"dtype":"F32")", 0), "header: not JSON from its byte 19 on"},
      {"JSON followed by more", file_of("{}{}", 0), "header: not JSON from its byte 2 on"},
      {"JSON padded with zeros", file_of(std::string("{}\0\0", 4), 0), "header: not JSON from its byte 2 on"},
      {"not UTF-8", file_of("{\"\xff\":1}", 0), "header: not JSON from its byte 2 on"},
      {"tensor that is a number", file_of(R"({"w":1})", 0), "tensor w: expected an object, got 1"},
      {"tensor that is a list", file_of(R"({"w":[]})", 0), "tensor w: expected an object, got an array"},
      {"name twice",
       file_of(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
               R"("w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
               8),
       "tensor w: the name appears twice"},
      {"field twice", one(R"("dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8])"),
       "tensor w: dtype: the key appears twice"},
      {"unknown field", one(R"("type":"F32")"),
       "tensor w: type: unknown key; known are dtype, shape and data_offsets"},
      {"metadata that is a string", file_of(R"({"__metadata__":"pt"})", 0),
       "__metadata__: expected an object, got the string \"pt\""},
      {"metadata value that is a number", file_of(R"({"__metadata__":{"step":3}})", 0),
       "__metadata__: step: expected a string, got 3"},
      {"metadata value that is an object", file_of(R"({"__metadata__":{"step":{}}})", 0),
       "__metadata__: step: expected a string, got an object"},
      {"metadata key twice", file_of(R"({"__metadata__":{"a":"1","a":"2"}})", 0),
       "__metadata__: a: the key appears twice"},
      {"metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0),
       "__metadata__: the name appears twice"},

      {"no dtype", one(R"("shape":[2],"data_offsets":[0,8])"), "tensor w: dtype is missing"},
      {"no shape", one(R"("dtype":"F32","data_offsets":[0,8])"), "tensor w: shape is missing"},
      {"no offsets", one(R"("dtype":"F32","shape":[2])"),
       "tensor w: data_offsets: expected 2 numbers, got 0"},
      {"unknown dtype", one(R"("dtype":"Q4","shape":[2],"data_offsets":[0,8])"),
       "tensor w: unknown dtype Q4; known are F32, F16, BF16, F64, I64, U64, I32, U32, I16, U16, I8, U8, "
       "BOOL, F8_E4M3, "
       "F8_E5M2, C64"},
      {"dtype that is a number", one(R"("dtype":7)"), "tensor w: dtype: expected a string, got 7"},
      {"dtype that is a list", one(R"("dtype":[7])"), "tensor w: dtype: expected a string, got an array"},
      {"shape that is a number", shaped("2"), "tensor w: shape: expected an array, got 2"},
      {"shape that is a string", shaped("\"2\""), "tensor w: shape: expected an array, got the string \"2\""},
      {"negative dimension", shaped("[-2]"), "tensor w: shape" + integers + "-2"},
      {"fractional dimension", shaped("[2.0]"), "tensor w: shape" + integers + "2.0"},
      {"dimension 2^63", shaped("[9223372036854775808]"),
       "tensor w: shape" + integers + "9223372036854775808"},
      {"dimension above 2^64", shaped("[99999999999999999999]"),
       "tensor w: shape" + integers + "99999999999999999999"},
      {"dimension null", shaped("[null]"), "tensor w: shape" + integers + "null"},
      {"dimension true", shaped("[true]"), "tensor w: shape" + integers + "a bool"},
      {"shape in a shape", shaped("[[2]]"), "tensor w: shape" + integers + "an array"},
      {"product that overflows", shaped("[4294967296,4294967296]"),
       "tensor w: shape [4294967296, 4294967296] has more than 9223372036854775807 elements"},
      {"bytes that overflow", shaped("[9223372036854775807]"),
       "tensor w: shape [9223372036854775807] of F32 has more than 2^64 bytes"},
      {"shape of other size", shaped("[3]"),
       "tensor w: shape [3] of F32 has 12 bytes, but data_offsets has 8"},

      {"one offset", placed("[8]"), "tensor w: data_offsets: expected 2 numbers, got 1"},
      {"three offsets", placed("[0,8,8]"), "tensor w: data_offsets: expected 2 numbers, got 3"},
      {"reversed offsets", placed("[8,0]"), "tensor w: data_offsets: begins at 8, after its end at 0"},
      {"negative offset", placed("[-8,0]"), "tensor w: data_offsets" + integers + "-8"},
      {"end beyond the file", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 7),
       "tensor w: ends at byte 8 of the data, but the file has 7 bytes of data"},
      {"offsets near 2^64", placed("[18446744073709551607,18446744073709551615]"),
       "tensor w: begins at byte 18446744073709551607 of the data, but the data begins at byte 0"},
      {"gap at the beginning", placed("[4,12]"),
       "tensor w: begins at byte 4 of the data, but the data begins at byte 0"},
      {"gap between tensors", two("[0,8]", "[12,20]"),
       "tensor b: begins at byte 12 of the data, but tensor a before it ends at byte 8"},
      {"overlapping tensors", two("[0,8]", "[4,12]"),
       "tensor b: begins at byte 4 of the data, but tensor a before it ends at byte 8"},
      {"the same data twice", two("[0,8]", "[0,8]"),
       "tensor b: begins at byte 0 of the data, but tensor a before it ends at byte 8"},
      {"bytes after the last tensor", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 9),
       "the tensors end at byte 8 of the data, but the file has 9 bytes of data"},
  };
  const TemporaryDirectory directory;
  for (const Case& c : cases) {
    CAPTURE(c.name);
    CHECK(refusal(directory, c.bytes) == c.message);
  }
}

TEST_CASE("safetensors: deeply nested JSON is refused without exhausting the stack") {
  const TemporaryDirectory directory;
  CHECK(refusal(directory, file_of("{\"w\":" + std::string(1'000'000, '['), 0)) ==
        "tensor w: expected an object, got an array");
}

TEST_CASE("safetensors: a truncated file is not taken for a whole one") {
  const TemporaryDirectory directory;
  write_model(directory / "valid");
  const std::string valid = read_bytes(directory / "valid");
  for (size_t size = 0; size < valid.size(); ++size) {
    CAPTURE(size);
    REQUIRE(refusal(directory, valid.substr(0, size)) != "not naming the file: no error");
  }
}

TEST_CASE("safetensors: mutated files are read or refused") {
  const TemporaryDirectory directory;
  write_model(directory / "valid", {{"format", "pt"}});
  const MutationCount count = read_mutations(read_bytes(directory / "valid"), 4000, read_all);
  CHECK(count.accepted > 100);
  CHECK(count.refused > 1000);
}

TEST_CASE("safetensors: the writer refuses what the format cannot hold, and leaves no file") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  const auto refused = [&](const std::vector<TensorInfo>& infos,
                           const std::map<std::string, std::string>& metadata = {}) {
    const std::string message = message_of([&] { SafetensorsWriter(path, infos, metadata); });
    CHECK(fs::is_empty(directory.path()));
    return message.substr(path.string().size());
  };
  CHECK(refused({{"w", DType::kQ8_0, {32}}}) ==
        ": tensor w: q8_0 cannot be stored in a safetensors file; F32, F16 and BF16 can");
  CHECK(refused({{"w", DType::kF32, {1}}, {"w", DType::kF32, {1}}}) ==
        ": tensor w: the name is given twice or reserved");
  CHECK(refused({{"__metadata__", DType::kF32, {1}}}) ==
        ": tensor __metadata__: the name is given twice or reserved");
  CHECK(refused({{"w\xff", DType::kF32, {1}}}) == ": a tensor name or metadata value is not UTF-8");
}

TEST_CASE("safetensors: the writer refuses more or fewer bytes than were declared, and leaves no file") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.safetensors";
  const std::vector<std::byte> bytes(16);
  {
    SafetensorsWriter writer(
        path, {{"a", DType::kF32, {3}}, {"none", DType::kF32, {0}}, {"b", DType::kF32, {1}}}, {});
    CHECK(message_of([&] { writer.write(bytes); }) ==
          path.string() + ": tensor a: expected at most 12 more bytes, got 16");
    writer.write(std::span(bytes).first(12));
    CHECK(message_of([&] { writer.finish(); }) == path.string() + ": tensor b: 4 bytes are missing");
    writer.write(std::span(bytes).first(4));
    CHECK(message_of([&] { writer.write(bytes); }) ==
          path.string() + ": got 16 more bytes after the last of 3 tensors");
  }
  CHECK(fs::is_empty(directory.path()));
}
