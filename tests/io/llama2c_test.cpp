#include "io/llama2c.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/bytes.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

// dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
using Dims = std::array<int32_t, 7>;
constexpr Dims kDims = {8, 12, 2, 2, 1, 6, 5};  // heads of 4, one KV head
constexpr int32_t kUntied = -6;

// Element `i` of every tensor is i plus the number of elements before the tensor, to tell places apart.
std::string version0(Dims dims, bool untied = false) {
  Bytes bytes;
  if (untied) dims[5] = kUntied;
  for (const int32_t dim : dims) bytes.i32(dim);
  const size_t n_per_layer = 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96;
  const size_t n = 48 + 2 * n_per_layer + 8 + 2 * 5 * 2 + (untied ? 48 : 0);
  for (size_t i = 0; i < n; ++i) bytes.number(static_cast<float>(i));
  return bytes;
}

// The layout that export.py writes: the norms, then each matrix as int8 followed by its scales.
std::string version2(const Dims& dims, int32_t group, uint8_t shared, int32_t version = 2) {
  Bytes bytes;
  bytes.u32(0x616b3432).i32(version);
  for (const int32_t dim : dims) bytes.i32(dim);
  bytes.u8(shared).i32(group).pad(256);
  for (int i = 0; i < 5 * 8; ++i) bytes.number(static_cast<float>(i));
  std::vector<size_t> sizes = {48};
  for (const size_t n : {64, 32, 32, 64, 96, 96, 96}) sizes.insert(sizes.end(), 2, n);
  if (shared == 0) sizes.push_back(48);
  for (size_t tensor = 0; tensor < sizes.size(); ++tensor) {
    for (size_t i = 0; i < sizes[tensor]; ++i) bytes.number(static_cast<int8_t>(i % 251));
    for (size_t i = 0; i < sizes[tensor] / 8; ++i) bytes.number(static_cast<float>(tensor) + 0.5F);
  }
  return bytes;
}

std::string refusal(const TemporaryDirectory& directory, const std::string& bytes) {
  const fs::path path = directory / "model.bin";
  write_bytes(path, bytes);
  const std::string message = message_of([&] { Llama2cFile::open(path); });
  const std::string prefix = path.string() + ": ";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : "not naming the file: " + message;
}

void read_all(const fs::path& path) {
  const Llama2cFile file = Llama2cFile::open(path);
  uint64_t sum = 0;
  for (const TensorInfo& info : file.tensors()) sum += sum_of(file.tensor(info.name).bytes);
  CHECK(sum != 1);
}

float first_of(const Llama2cFile& file, std::string_view name) {
  return values_of(file.tensor(name)).at(0);
}

}  // namespace

TEST_CASE("llama2c: version 0 has its tensors kind by kind over the layers") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.bin";
  write_bytes(path, version0(kDims));
  CHECK(Llama2cFile::matches(path));
  const Llama2cFile file = Llama2cFile::open(path);
  const Llama2cHeader& header = file.header();
  CHECK(header.version == 0);
  CHECK(header.d_model == 8);
  CHECK(header.d_ff == 12);
  CHECK(header.n_layers == 2);
  CHECK(header.n_heads == 2);
  CHECK(header.n_kv_heads == 1);
  CHECK(header.n_vocab == 6);
  CHECK(header.max_seq == 5);
  CHECK(header.tied);
  REQUIRE(file.tensors().size() == 2 + 2 * 9);
  CHECK(file.tensors()[0].name == "tok_embeddings");
  CHECK(file.tensors()[1].name == "attention_norm.0");
  CHECK(file.tensors().back().name == "norm");
  CHECK(file.tensor("wq.0").shape == Shape{8, 8});
  CHECK(file.tensor("wk.1").shape == Shape{4, 8});
  CHECK(file.tensor("w1.1").shape == Shape{12, 8});
  CHECK(file.tensor("w2.1").shape == Shape{8, 12});
  CHECK(first_of(file, "tok_embeddings") == 0);
  CHECK(first_of(file, "attention_norm.1") == 48 + 8);
  CHECK(first_of(file, "wq.0") == 48 + 16);
  CHECK(first_of(file, "wk.1") == 48 + 16 + 128 + 32);
  CHECK(first_of(file, "w1.0") == 48 + 16 + 128 + 64 + 64 + 128 + 16);
  CHECK(first_of(file, "norm") == 48 + 2 * (8 + 64 + 32 + 32 + 64 + 8 + 3 * 96));
  CHECK(message_of([&] { file.tensor("output"); }) == path.string() + ": there is no tensor output");
  CHECK(message_of([&] { file.tensor("freq_cis_real"); }) ==
        path.string() + ": there is no tensor freq_cis_real");
}

TEST_CASE("llama2c: a negative vocabulary size says that the classifier follows the rotations") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.bin";
  write_bytes(path, version0(kDims, true));
  const Llama2cFile file = Llama2cFile::open(path);
  CHECK(!file.header().tied);
  CHECK(file.header().n_vocab == 6);
  CHECK(file.tensor("output").shape == Shape{6, 8});
  CHECK(first_of(file, "output") == first_of(file, "norm") + 8 + 2 * 5 * 2);
}

TEST_CASE("llama2c: version 2 decodes groups of int8, and has the norms first") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.bin";
  for (const bool tied : {true, false}) {
    write_bytes(path, version2(kDims, 8, tied ? 1 : 0));
    CHECK(Llama2cFile::matches(path));
    const Llama2cFile file = Llama2cFile::open(path);
    CHECK(file.header().version == 2);
    CHECK(file.header().group_size == 8);
    CHECK(file.header().tied == tied);
    CHECK(first_of(file, "attention_norm.1") == 8);
    CHECK(first_of(file, "ffn_norm.0") == 16);
    CHECK(first_of(file, "norm") == 32);
    const auto expect = [&](std::string_view name, int index) {
      const std::vector<float> values = values_of(file.tensor(name));
      for (size_t i = 0; i < values.size(); ++i)
        REQUIRE(values[i] == static_cast<float>(i) * (static_cast<float>(index) + 0.5F));
    };
    expect("tok_embeddings", 0);
    expect("wq.0", 1);
    expect("wq.1", 2);
    expect("wk.0", 3);
    expect("wo.1", 8);
    expect("w1.0", 9);
    expect("w2.1", 12);
    expect("w3.1", 14);
    if (!tied) expect("output", 15);
  }
}

TEST_CASE("llama2c: corrupt files are refused, saying where, what was expected and what was found") {
  struct Case {
    std::string name;
    std::string bytes;
    std::string message;
  };
  const auto header = [](Dims dims, size_t index, int32_t value) {
    dims[index] = value;
    Bytes bytes;
    for (const int32_t dim : dims) bytes.i32(dim);
    return std::string(bytes);
  };
  const int32_t most = std::numeric_limits<int32_t>::max(), least = std::numeric_limits<int32_t>::min();
  const std::string valid0 = version0(kDims), valid2 = version2(kDims, 8, 1);
  const std::string size0 = fmt::format("{}", valid0.size()), size2 = fmt::format("{}", valid2.size());
  const std::string need = "header: dim 8, hidden_dim 12, n_layers 2 and so on need a file of ";
  Dims negative = kDims;
  negative[5] = kUntied;
  const std::vector<Case> cases = {
      {"empty file", "", "header: needs 4 bytes from byte 0 on, but the file has 0 bytes"},
      {"header cut off", valid0.substr(0, 27),
       "header: needs 4 bytes from byte 24 on, but the file has 27 bytes"},
      {"wrong magic", "GGUF" + valid2.substr(4),
       "header: expected dim to be a multiple of n_heads 12, got 1179993927"},
      {"zero dim", header(kDims, 0, 0), "header: expected dim to be positive, got 0"},
      {"negative hidden_dim", header(kDims, 1, -12), "header: expected hidden_dim to be positive, got -12"},
      {"negative n_layers", header(kDims, 2, least),
       "header: expected n_layers to be positive, got -2147483648"},
      {"no heads", header(kDims, 3, 0), "header: expected n_heads to be positive, got 0"},
      {"no KV heads", header(kDims, 4, 0), "header: expected n_kv_heads to be positive, got 0"},
      {"no vocabulary", header(kDims, 5, 0), "header: expected vocab_size to be positive, got 0"},
      {"no positions", header(kDims, 6, 0), "header: expected seq_len to be positive, got 0"},
      {"heads that do not divide dim", header(kDims, 3, 3),
       "header: expected dim to be a multiple of n_heads 3, got 8"},
      {"KV heads that do not divide the heads", header({8, 12, 2, 4, 1, 6, 5}, 4, 3),
       "header: expected n_heads to be a multiple of n_kv_heads 3, got 4"},
      {"odd heads", header(kDims, 0, 6), "header: expected the head size to be even, got 3"},
      {"sizes that overflow", header({1 << 30, most, most, 1, 1, least, most}, 6, most),
       "header: the tensors have more than 2^64 bytes"},
      {"more layers than bytes", header(kDims, 2, most) + valid0.substr(28),
       "header: dim 8, hidden_dim 12, n_layers 2147483647 and so on need a file of 4260607555980 bytes, but "
       "it has " +
           size0},
      {"cut off", valid0.substr(0, valid0.size() - 1),
       need + size0 + " bytes, but it has " + fmt::format("{}", valid0.size() - 1)},
      {"one byte too many", valid0 + "x",
       need + size0 + " bytes, but it has " + fmt::format("{}", valid0.size() + 1)},
      {"version 2 header cut off", valid2.substr(0, 255),
       "header: needs 215 bytes from byte 41 on, but the file has 255 bytes"},
      {"version 1", version2(kDims, 8, 1, 1), "header: expected version 2 after the magic ak42, got 1"},
      {"version 3", version2(kDims, 8, 1, 3), "header: expected version 2 after the magic ak42, got 3"},
      {"shared_classifier 2", version2(kDims, 8, 2),
       "header: expected shared_classifier to be 0 or 1, got 2"},
      {"no group size", version2(kDims, 0, 1), "header: expected group_size to be positive, got 0"},
      {"negative group size", version2(kDims, -8, 1), "header: expected group_size to be positive, got -8"},
      {"group size that divides no matrix", version2(kDims, 5, 1),
       "header: expected tok_embeddings [6, 8] to be a multiple of group_size 5"},
      {"negative vocabulary in version 2", version2(negative, 8, 1),
       "header: expected vocab_size to be positive, got -6"},
      {"version 2 cut off", valid2.substr(0, valid2.size() - 4),
       need + size2 + " bytes, but it has " + fmt::format("{}", valid2.size() - 4)},
      {"classifier announced but not there", version2(kDims, 8, 1).replace(36, 1, 1, '\0'),
       need + fmt::format("{}", valid2.size() + 48 + 24) + " bytes, but it has " + size2},
  };
  const TemporaryDirectory directory;
  for (const Case& c : cases) {
    CAPTURE(c.name);
    CHECK(refusal(directory, c.bytes) == c.message);
  }
}

TEST_CASE(
    "llama2c: other files do not match, damaged version 2 files do, so that opening them says what is "
    "wrong") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "model.bin";
  for (const std::string& bytes : {std::string(), std::string("ak"), std::string(1000, '\0'),
                                   std::string(1000, 'x'), version0(kDims) + "x"}) {
    write_bytes(path, bytes);
    CHECK(!Llama2cFile::matches(path));
  }
  write_bytes(path, version2(kDims, 8, 1) + "x");
  CHECK(Llama2cFile::matches(path));
}

TEST_CASE("llama2c: mutated files are read or refused") {
  for (const std::string& valid : {version0(kDims), version2(kDims, 8, 0)}) {
    // The header is a hundredth of the file. Half of the mutations are made there, where they matter.
    const std::string header = valid.substr(0, 48), rest = valid.substr(48);
    const MutationCount anywhere = read_mutations(valid, 1000, read_all);
    CHECK(anywhere.accepted > 100);
    CHECK(anywhere.refused > 100);
    std::mt19937_64 random(7);
    const TemporaryDirectory directory;
    for (int i = 0; i < 1000; ++i) {
      write_bytes(directory / "mutated", mutated(header, random) + rest);
      try {
        read_all(directory / "mutated");
      } catch (const Error&) {
      }
    }
  }
}

TEST_CASE("llama2c: real models have the dimensions that their authors state") {
  if (!has_shared_data()) return;
  struct Case {
    std::string path;
    int version;
    int64_t d_model, d_ff, n_layers, n_heads, n_kv_heads, n_vocab, max_seq, n_parameters;
  };
  const std::vector<Case> cases = {
      {"stories3M/stories3M-q80.bin", 2, 192, 512, 6, 6, 2, 4096, 512, 3'148'224},
      {"stories260K/stories260K.bin", 0, 64, 172, 5, 8, 4, 512, 512, 0},
      {"aidreams260K/aidreams260K.bin", 0, 64, 172, 4, 4, 4, 512, 128, 0},
  };
  for (const Case& c : cases) {
    CAPTURE(c.path);
    const fs::path path = shared_data() / "models" / c.path;
    CHECK(Llama2cFile::matches(path));
    const Llama2cFile file = Llama2cFile::open(path);
    const Llama2cHeader& header = file.header();
    CHECK(header.version == c.version);
    CHECK(header.d_model == c.d_model);
    CHECK(header.d_ff == c.d_ff);
    CHECK(header.n_layers == c.n_layers);
    CHECK(header.n_heads == c.n_heads);
    CHECK(header.n_kv_heads == c.n_kv_heads);
    CHECK(header.n_vocab == c.n_vocab);
    CHECK(header.max_seq == c.max_seq);
    CHECK(header.tied);
    int64_t n_parameters = 0;
    for (const TensorInfo& info : file.tensors()) {
      n_parameters += n_elements(info.shape);
      // A tensor read from the wrong place would mix weights with scales or look like noise.
      const std::vector<float> values = values_of(file.tensor(info.name));
      double squares = 0;
      for (const float value : values) squares += double{value} * value;
      const double rms = std::sqrt(squares / static_cast<double>(values.size()));
      CAPTURE(info.name);
      CHECK(rms > 0.001);
      CHECK(rms < 10);
    }
    if (c.n_parameters != 0) CHECK(n_parameters == c.n_parameters);
  }
}
