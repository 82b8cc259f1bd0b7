#include "model/imatrix.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "base/hash.h"
#include "io/gguf.h"
#include "support/bytes.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// The sum of squares of a column. It differs for every tensor and column.
float sum_of_column(size_t tensor, size_t column) {
  return 100.0F * static_cast<float>(tensor) + static_cast<float>(column) + 0.25F;
}

Imatrix make_imatrix(const ModelSpec& spec) {
  Imatrix imatrix;
  imatrix.datasets = {"wiki.txt", "code.txt"};
  imatrix.chunk_count = 5;
  imatrix.chunk_size = 128;
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    if (!site_of(tensor.role)) continue;
    ImatrixEntry& entry = imatrix.entries[tensor.gguf_name];
    entry.count = 640;
    for (int64_t j = 0; j < tensor.shape.back(); ++j)
      entry.sum_squares.push_back(sum_of_column(i, static_cast<size_t>(j)));
  }
  return imatrix;
}

Profile make_profile(const ModelSpec& spec) {
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  profile.corpus = "stories.txt";
  profile.n_tokens = 100;
  profile.seq_len = 20;
  for (size_t layer = 0; layer < static_cast<size_t>(spec.n_layers); ++layer)
    for (const Role role : {Role::kQuery, Role::kAttnOut, Role::kGate, Role::kDown}) {
      InputMeans& means = profile.inputs.emplace_back();
      const auto& tensor = spec.tensors[static_cast<size_t>(spec.find(role, static_cast<int64_t>(layer)))];
      for (int64_t j = 0; j < tensor.shape.back(); ++j) {
        means.mean.push_back(-0.5);
        means.mean_square.push_back(static_cast<double>(profile.inputs.size()) +
                                    0.125 * static_cast<double>(j));
      }
    }
  return profile;
}

void check_same(const Imatrix& a, const Imatrix& b) {
  CHECK(a.datasets == b.datasets);
  CHECK(a.chunk_count == b.chunk_count);
  CHECK(a.chunk_size == b.chunk_size);
  CHECK(a.permutation_digest == b.permutation_digest);
  REQUIRE(a.entries.size() == b.entries.size());
  for (const auto& [name, entry] : a.entries) {
    CAPTURE(name);
    REQUIRE(b.entries.count(name) == 1);
    CHECK(entry.count == b.entries.at(name).count);
    CHECK(entry.sum_squares == b.entries.at(name).sum_squares);
  }
}

Permutation shuffled(const ModelSpec& spec) {
  Permutation permutation = identity_permutation(spec);
  std::mt19937_64 random(3);
  for (auto& order : permutation.orders) std::shuffle(order.begin(), order.end(), random);
  return permutation;
}

/// One f32 tensor of a hand-made file.
struct Part {
  std::string name;
  Shape shape;
  float value = 1;
};

std::string file_of(const std::vector<Part>& parts, const std::string& type = "imatrix", int64_t chunks = 1) {
  const TemporaryDirectory directory;
  GgufMetadata keys;
  keys.set("general.type", type);
  keys.set("imatrix.chunk_count", chunks);
  std::vector<TensorInfo> tensors;
  for (const Part& part : parts) tensors.push_back({part.name, DType::kF32, part.shape});
  GgufWriter writer(directory / "f.gguf", keys, tensors);
  for (const Part& part : parts) {
    const std::vector<float> values(static_cast<size_t>(n_elements(part.shape)), part.value);
    writer.write(std::as_bytes(std::span(values)));
  }
  writer.finish();
  return read_text(directory / "f.gguf");
}

std::string old_entry(const std::string& name, int32_t n_calls, const std::vector<float>& values) {
  Bytes bytes;
  bytes.i32(static_cast<int32_t>(name.size())).text(name).i32(n_calls);
  bytes.i32(static_cast<int32_t>(values.size()));
  for (const float value : values) bytes.number(value);
  return bytes;
}

}  // namespace

TEST_CASE("imatrix: saved and loaded it is the same, with equal bytes each time") {
  const Imatrix imatrix = make_imatrix(make_tiny_spec("llama"));
  const TemporaryDirectory directory;
  const std::string digest = save_imatrix(imatrix, directory / "a.gguf");
  CHECK(digest == sha256_file(directory / "a.gguf"));
  const Imatrix loaded = load_imatrix(directory / "a.gguf");
  check_same(loaded, imatrix);
  save_imatrix(loaded, directory / "b.gguf");
  CHECK(read_text(directory / "a.gguf") == read_text(directory / "b.gguf"));
}

TEST_CASE("imatrix: the file has the keys, names, shapes and order that llama.cpp writes") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 1});
  const TemporaryDirectory directory;
  save_imatrix(make_imatrix(spec), directory / "a.gguf");
  const GgufFile file = GgufFile::open(directory / "a.gguf");
  std::vector<std::string> keys;
  for (const auto& [key, value] : file.metadata().entries()) keys.push_back(key);
  CHECK(keys == std::vector<std::string>{"general.type", "imatrix.datasets", "imatrix.chunk_count",
                                         "imatrix.chunk_size"});
  CHECK(std::holds_alternative<uint32_t>(*file.metadata().find("imatrix.chunk_count")));
  CHECK(std::holds_alternative<uint32_t>(*file.metadata().find("imatrix.chunk_size")));
  CHECK(file.metadata().strings("imatrix.datasets")->size() == 2);
  std::vector<std::string> names;
  for (const TensorInfo& tensor : file.tensors()) names.push_back(tensor.name + to_string(tensor.shape));
  CHECK(names == std::vector<std::string>{
                     "blk.0.attn_k.weight.in_sum2[1, 32]", "blk.0.attn_k.weight.counts[1, 1]",
                     "blk.0.attn_output.weight.in_sum2[1, 32]", "blk.0.attn_output.weight.counts[1, 1]",
                     "blk.0.attn_q.weight.in_sum2[1, 32]", "blk.0.attn_q.weight.counts[1, 1]",
                     "blk.0.attn_v.weight.in_sum2[1, 32]", "blk.0.attn_v.weight.counts[1, 1]",
                     "blk.0.ffn_down.weight.in_sum2[1, 64]", "blk.0.ffn_down.weight.counts[1, 1]",
                     "blk.0.ffn_gate.weight.in_sum2[1, 32]", "blk.0.ffn_gate.weight.counts[1, 1]",
                     "blk.0.ffn_up.weight.in_sum2[1, 32]", "blk.0.ffn_up.weight.counts[1, 1]"});
}

TEST_CASE("imatrix: other statistics beside the two are passed over, and one-axis shapes are read") {
  const TemporaryDirectory directory;
  write_bytes(directory / "a.gguf",
              file_of({{"w.in_sum2", {3}, 8}, {"w.counts", {1}, 4}, {"w.in_sum", {1, 3}, 5}}));
  const Imatrix imatrix = load_imatrix(directory / "a.gguf");
  REQUIRE(imatrix.entries.size() == 1);
  CHECK(imatrix.entries.at("w").sum_squares == std::vector<float>{8, 8, 8});
  CHECK(imatrix.entries.at("w").count == 4);
}

TEST_CASE("imatrix: the older form is read, with and without its trailing part") {
  const TemporaryDirectory directory;
  Bytes bytes;
  bytes.i32(2)
      .text(old_entry("blk.0.ffn_up.weight", 4, {8, 2}))
      .text(old_entry("blk.0.attn_q.weight", 1, {3}));
  write_bytes(directory / "short.dat", bytes);
  bytes.i32(4).i32(8).text("wiki.txt");
  write_bytes(directory / "long.dat", bytes);
  Imatrix expected;
  expected.entries = {{"blk.0.ffn_up.weight", {{8, 2}, 4}}, {"blk.0.attn_q.weight", {{3}, 1}}};
  check_same(load_imatrix(directory / "short.dat"), expected);
  expected.chunk_count = 4;
  expected.datasets = {"wiki.txt"};
  check_same(load_imatrix(directory / "long.dat"), expected);
}

TEST_CASE("imatrix: a file that is wrong is refused with the place and both values") {
  const std::vector<Part> good{{"w.in_sum2", {1, 3}}, {"w.counts", {1, 1}}};
  const std::string old = Bytes().i32(1).text(old_entry("w", 2, {1, 2}));
  struct Case {
    std::string bytes, message;
  };
  const std::vector<Case> table{
      {file_of(good, "model"), "key general.type: expected imatrix, got model"},
      {file_of({{"blk.0.attn_q.weight", {4, 4}}}),
       "not an importance matrix: no tensor's name ends in .in_sum2"},
      {file_of({{"w.in_sum2", {1, 3}}}), "w: has sums of squares but no counts"},
      {file_of({{"w.counts", {1, 1}}}), "w: has counts but no sums of squares"},
      {file_of({{"w.in_sum2", {8, 3}}, {"w.counts", {8, 1}}}),
       "w.in_sum2: expected one matrix, got 8: mixtures of experts are not supported"},
      {file_of({{"w.in_sum2", {1, 3}}, {"w.counts", {1, 2}}}), "w.counts: expected one count, got 2"},
      {file_of({{"w.in_sum2", {1, 3}}, {"w.counts", {1, 1}, 0}}), "w: expected a positive count, got 0"},
      {file_of({{"w.in_sum2", {1, 3}, NAN}, {"w.counts", {1, 1}}}),
       "w: expected sums of squares, got nan for column 0"},
      {file_of({{"w.in_sum2", {1, 3}, -2}, {"w.counts", {1, 1}}}),
       "w: expected sums of squares, got -2 for column 0"},
      {file_of(good, "imatrix", -1), "chunk count: expected 0 to 2^32 - 1, got -1"},
      {file_of(good).substr(0, 200), "tensor w.in_sum2: ends at byte 236, but the file has 200 bytes"},
      {"", "number of entries: needs 4 bytes from byte 0 on, but the file has 0 bytes"},
      {"once upon a time",
       "not an importance matrix: starts neither with GGUF nor with a number of entries that fit into its 16 "
       "bytes"},
      {old.substr(0, old.size() - 1), "w: values: needs 8 bytes from byte 17 on, but the file has 24 bytes"},
      {old + "ab", "number of chunks: needs 4 bytes from byte 25 on, but the file has 27 bytes"},
      {Bytes().text(old).i32(1).i32(1).text("ab"), "1 bytes follow the last entry"},
      {Bytes().i32(1).text(old_entry("w", 0, {1, 2})), "w: expected a positive count, got 0"},
      {Bytes().i32(1).text(old_entry("w", 2, {1, INFINITY})),
       "w: expected sums of squares, got inf for column 1"},
      {Bytes().i32(2).text(old_entry("w", 2, {1, 2})).text(old_entry("w", 2, {1, 2})),
       "w: the entry appears twice"},
      {Bytes().i32(1).i32(-1).zeros(20), "name of entry 0: expected a length, got -1"},
      {Bytes().i32(1).text(old_entry("w", 2, {})).zeros(8), "w: expected at least one value, got 0"},
  };
  const TemporaryDirectory directory;
  const fs::path path = directory / "f";
  for (const Case& wrong : table) {
    write_bytes(path, wrong.bytes);
    CHECK(message_of([&] { load_imatrix(path); }) == path.string() + ": " + wrong.message);
  }
}

TEST_CASE("imatrix: a damaged file is read or refused, never worse") {
  const TemporaryDirectory directory;
  save_imatrix(make_imatrix(make_tiny_spec("llama", {.n_layers = 1})), directory / "a.gguf");
  const auto read = [](const fs::path& path) { load_imatrix(path); };
  const MutationCount gguf = read_mutations(read_text(directory / "a.gguf"), 300, read);
  CHECK(gguf.refused > 0);
  const MutationCount old = read_mutations(
      Bytes().i32(2).text(old_entry("a", 2, {1, 2})).text(old_entry("b", 2, {1, 2})).i32(1).i32(1).text("x"),
      300, read);
  CHECK(old.refused > 0);
}

TEST_CASE("imatrix: one of another model is refused with file, tensor and both sizes") {
  const ModelSpec spec = make_tiny_spec("llama");
  const TemporaryDirectory directory;
  const fs::path path = directory / "a.gguf";
  save_imatrix(make_imatrix(spec), path);
  check_same(open_imatrix(path, spec), make_imatrix(spec));
  const auto message = [&](const ModelSpec& other) {
    return message_of([&] { open_imatrix(path, other); }).substr(path.string().size() + 2);
  };
  CHECK(message(make_tiny_spec("llama", {.d_ff = 80})) ==
        "blk.0.ffn_down.weight: expected 80 columns, got 64");
  CHECK(message(make_tiny_spec("llama", {.d_model = 64})) ==
        "blk.0.attn_k.weight: expected 64 columns, got 32");
  CHECK(message(make_tiny_spec("llama", {.n_layers = 1})) ==
        "blk.1.attn_k.weight: the model has no such matrix");
  CHECK(hint_of([&] { open_imatrix(path, make_tiny_spec("llama", {.n_layers = 1})); }) ==
        "this importance matrix was measured on another model");
  CHECK(message_of([&] {
          const ModelSpec deeper = make_tiny_spec("llama", {.n_layers = 3});
          input_mean_squares(load_imatrix(path), deeper);
        }) == "no entry for blk.2.attn_q.weight or blk.2.attn_k.weight or blk.2.attn_v.weight");
}

TEST_CASE("imatrix: one of a reordered model is refused where the source's is wanted") {
  const ModelSpec spec = make_tiny_spec("llama");
  const TemporaryDirectory directory;
  const Imatrix moved = reordered(make_imatrix(spec), spec, shuffled(spec));
  save_imatrix(moved, directory / "a.gguf");
  check_same(load_imatrix(directory / "a.gguf"), moved);
  CHECK(message_of([&] { open_imatrix(directory / "a.gguf", spec); }) ==
        (directory / "a.gguf").string() + ": belongs to a reordered model, expected one of the source model");
  CHECK(message_of([&] { reordered(moved, spec, shuffled(spec)); }) ==
        "the importance matrix was reordered before");
}

TEST_CASE("imatrix: a profile's means become sums over its tokens, and come back as means") {
  const ModelSpec spec = make_tiny_spec("qwen3");
  const Profile profile = make_profile(spec);
  const TemporaryDirectory directory;
  save_profile(profile, spec, directory / "p.h5");
  const Imatrix imatrix = open_imatrix(directory / "p.h5", spec);
  CHECK(imatrix.datasets == std::vector<std::string>{"stories.txt"});
  CHECK(imatrix.chunk_size == 20);
  CHECK(imatrix.chunk_count == 5);
  CHECK(imatrix.entries.size() == static_cast<size_t>(7 * spec.n_layers));
  for (const char* name : {"blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"})
    CHECK(imatrix.entries.at(name).sum_squares[2] == 100.0F * (5 + 0.25F));
  CHECK(imatrix.entries.at("blk.1.ffn_down.weight").sum_squares[3] == 100.0F * (8 + 0.375F));
  CHECK(imatrix.entries.at("blk.1.ffn_down.weight").count == 100);
  const auto means = input_mean_squares(imatrix, spec);
  REQUIRE(means.size() == profile.inputs.size());
  for (size_t i = 0; i < means.size(); ++i) CHECK(means[i] == profile.inputs[i].mean_square);

  Profile without = profile;
  without.inputs.clear();
  save_profile(without, spec, directory / "none.h5");
  CHECK(message_of([&] { open_imatrix(directory / "none.h5", spec); }) ==
        (directory / "none.h5").string() + ": the profile has no means of the inputs");
}

TEST_CASE("imatrix: a projection without an entry is served by those that share its input") {
  const ModelSpec spec = make_tiny_spec("llama");
  Imatrix imatrix = make_imatrix(spec);
  imatrix.entries.erase("blk.0.attn_q.weight");
  const auto means = input_mean_squares(imatrix, spec);
  const auto key = static_cast<size_t>(spec.find(Role::kKey, 0));
  CHECK(means[0][3] == static_cast<double>(sum_of_column(key, 3)) / 640);
}

TEST_CASE(
    "imatrix: in every family, columns follow the units that they belong to, and levels keep the first") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    const Imatrix imatrix = make_imatrix(spec);
    const Permutation permutation = shuffled(spec);
    const Imatrix moved = reordered(imatrix, spec, permutation);
    CHECK(moved.permutation_digest == digest(permutation));
    Widths widths = full_widths(spec);
    widths[spec.attention_space(0)] = 1;
    widths[spec.mlp_space(1)] = 24;
    const Imatrix narrow = narrowed(moved, spec, widths);
    for (size_t i = 0; i < spec.tensors.size(); ++i) {
      const TensorSpec& tensor = spec.tensors[i];
      if (!site_of(tensor.role)) continue;
      CAPTURE(tensor.gguf_name);
      const auto layer = static_cast<size_t>(tensor.layer);
      std::vector<float> expected;
      if (tensor.role == Role::kDown) {
        for (const int64_t neuron : permutation.orders[2 * layer + 1])
          expected.push_back(sum_of_column(i, static_cast<size_t>(neuron)));
      } else if (tensor.role == Role::kAttnOut) {
        const int64_t group = spec.layer(0).heads_per_group * spec.head_dim;
        for (const int64_t unit : permutation.orders[2 * layer])
          for (int64_t j = 0; j < group; ++j)
            expected.push_back(sum_of_column(i, static_cast<size_t>(unit * group + j)));
      } else {
        expected = imatrix.entries.at(tensor.gguf_name).sum_squares;
      }
      CHECK(moved.entries.at(tensor.gguf_name).sum_squares == expected);
      if (tensor.role == Role::kDown && layer == 1) expected.resize(24);
      if (tensor.role == Role::kAttnOut && layer == 0)
        expected.resize(static_cast<size_t>(spec.layer(0).heads_per_group * spec.head_dim));
      CHECK(narrow.entries.at(tensor.gguf_name).sum_squares == expected);
    }
    check(narrow, elastify::narrowed(spec, widths));
  }
}

TEST_CASE("imatrix: of halves of layers that are left out, nothing is listed") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 4});
  const Widths widths = shallow_widths(spec);
  const Imatrix narrow = narrowed(make_imatrix(spec), spec, widths);
  for (const TensorSpec& tensor : spec.tensors)
    if (site_of(tensor.role))
      CHECK_MESSAGE(narrow.entries.contains(tensor.gguf_name) == is_kept(spec, tensor, widths),
                    tensor.gguf_name);
  check(narrow, elastify::narrowed(spec, widths));
}
