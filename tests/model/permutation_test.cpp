#include "model/permutation.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "io/hdf5.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

namespace {

Permutation shuffled(const ModelSpec& spec, uint64_t seed) {
  Permutation permutation = identity_permutation(spec);
  permutation.metric = "random";
  std::mt19937_64 random(seed);
  for (auto& order : permutation.orders) std::shuffle(order.begin(), order.end(), random);
  return permutation;
}

HostTensor weights(const TensorSpec& tensor, DType dtype) {
  return tensor_of(tiny_weights(tensor, 2), tensor.shape, dtype);
}

const TensorSpec& tensor_with(const ModelSpec& spec, Role role) {
  return spec.tensors[static_cast<size_t>(spec.find(role, 0))];
}

}  // namespace

TEST_CASE("permutation: the inverse restores identical bytes, in every variant and float type") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const Permutation permutation = shuffled(variant.spec, 4);
    const Permutation back = inverse(permutation);
    check(back, variant.spec);
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const TensorSpec& tensor : variant.spec.tensors) {
        CAPTURE(tensor.name);
        const HostTensor before = weights(tensor, dtype);
        const HostTensor moved = permute(before, tensor, permutation);
        CHECK(same_bytes(permute(moved, tensor, back), before));
      }
    }
  }
}

TEST_CASE("permutation: block order[i] of the source becomes block i") {
  const ModelSpec spec =
      make_tiny_spec("qwen2", {.n_layers = 1, .d_model = 3, .head_dim = 2, .n_kv_heads = 3, .d_ff = 4});
  Permutation permutation = identity_permutation(spec);
  permutation.orders = {{2, 0, 1}, {3, 1, 0, 2}};
  for (const TensorSpec& tensor : spec.tensors) {
    CAPTURE(tensor.name);
    const std::vector<float> before = tiny_weights(tensor, 9);
    const std::vector<float> after = values_of(permute(tensor_of(before, tensor.shape), tensor, permutation));
    const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    const auto source_of = [&](size_t axis, int64_t index) {
      if (axis >= tensor.axes.size() || tensor.axes[axis].space < 0) return index;
      const AxisUse& use = tensor.axes[axis];
      const auto& order = permutation.orders[static_cast<size_t>(use.space)];
      return order[static_cast<size_t>(index / use.block)] * use.block + index % use.block;
    };
    for (int64_t row = 0; row < tensor.shape[0]; ++row) {
      for (int64_t column = 0; column < columns; ++column)
        CHECK(after[static_cast<size_t>(row * columns + column)] ==
              before[static_cast<size_t>(source_of(0, row) * columns + source_of(1, column))]);
    }
  }
}

TEST_CASE("permutation: quantised rows move, but are not taken apart") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Permutation permutation = shuffled(spec, 1);
  const TensorSpec& gate = tensor_with(spec, Role::kGate);
  const HostTensor moved = permute(weights(gate, DType::kQ8_0), gate, permutation);
  CHECK(same_bytes(permute(moved, gate, inverse(permutation)), weights(gate, DType::kQ8_0)));
  const TensorSpec& down = tensor_with(spec, Role::kDown);
  CHECK(message_of([&] { permute(weights(down, DType::kQ8_0), down, permutation); }) ==
        "model.layers.0.mlp.down_proj.weight: units lie inside rows of q8_0, which cannot be taken apart");
}

TEST_CASE("permutation: a tensor without units is passed on as it is") {
  const ModelSpec spec = make_tiny_spec("llama");
  const HostTensor norm = weights(tensor_with(spec, Role::kAttnNorm), DType::kF32);
  CHECK(permute(norm, tensor_with(spec, Role::kAttnNorm), shuffled(spec, 1)).bytes.data() ==
        norm.bytes.data());
}

TEST_CASE("permutation: a tensor of another shape is refused") {
  const ModelSpec spec = make_tiny_spec("llama");
  const TensorSpec& gate = tensor_with(spec, Role::kGate);
  const HostTensor other = tensor_of(std::vector<float>(64), {2, 32});
  CHECK(message_of([&] { permute(other, gate, shuffled(spec, 1)); }) ==
        "model.layers.0.mlp.gate_proj.weight: expected shape [64, 32], got [2, 32]");
  CHECK(message_of([&] { slice(other, gate, full_widths(spec)); }) ==
        "model.layers.0.mlp.gate_proj.weight: expected shape [64, 32], got [2, 32]");
}

TEST_CASE("permutation: what is not one of every unit is refused by space") {
  const ModelSpec spec = make_tiny_spec("llama");
  struct Case {
    std::function<void(Permutation&)> spoil;
    std::string message;
  };
  const std::vector<Case> cases{
      {[](Permutation& p) { p.orders.pop_back(); }, "expected orders for 4 spaces, got 3"},
      {[](Permutation& p) { p.orders[3].pop_back(); }, "layers.1.mlp: expected 64 units, got 63"},
      {[](Permutation& p) {
         p.orders[0] = {0, 2};
       },
       "layers.0.attn: unit 2 is outside 0 to 1"},
      {[](Permutation& p) {
         p.orders[0] = {-1, 0};
       },
       "layers.0.attn: unit -1 is outside 0 to 1"},
      {[](Permutation& p) {
         p.orders[2] = {1, 1};
       },
       "layers.1.attn: unit 1 appears twice"},
      {[](Permutation& p) { p.spec_hash = "0"; }, "the permutation belongs to another model"},
  };
  for (const Case& each : cases) {
    Permutation permutation = identity_permutation(spec);
    each.spoil(permutation);
    CHECK(message_of([&] { check(permutation, spec); }) == each.message);
  }
  Permutation lying = identity_permutation(spec);
  lying.orders[1][5] = INT64_MAX;
  const TensorSpec& down = tensor_with(spec, Role::kDown);
  CHECK(message_of([&] { permute(weights(down, DType::kF32), down, lying); }) ==
        "model.layers.0.mlp.down_proj.weight: unit 9223372036854775807 is outside 0 to 63");
}

TEST_CASE("permutation: saved and loaded it is the same, with equal bytes each time") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Permutation permutation = shuffled(spec, 8);
  const TemporaryDirectory directory;
  save_permutation(permutation, spec, directory / "a.h5");
  save_permutation(permutation, spec, directory / "b.h5");
  CHECK(read_text(directory / "a.h5") == read_text(directory / "b.h5"));
  const Permutation loaded = load_permutation(directory / "a.h5", spec);
  CHECK(loaded.orders == permutation.orders);
  CHECK(loaded.metric == "random");
  CHECK(loaded.spec_hash == spec_hash(spec));
  CHECK(digest(loaded) == digest(permutation));
  CHECK(digest(loaded) != digest(identity_permutation(spec)));
}

TEST_CASE("permutation: a file for another model or of another kind is refused") {
  const ModelSpec spec = make_tiny_spec("llama");
  const TemporaryDirectory directory;
  const fs::path path = directory / "p.h5";
  const auto message = [&](const ModelSpec& other) {
    return message_of([&] { load_permutation(path, other); }).substr(path.string().size() + 2);
  };
  save_permutation(shuffled(spec, 8), spec, path);
  CHECK(message(make_tiny_spec("llama", {.d_ff = 80})) == "layers.0.mlp: expected 80 units, got 64");
  CHECK(message(make_tiny_spec("llama", {.n_layers = 3})) == "layers.2.attn: no order for this space");
  CHECK(message(make_tiny_spec("llama", {.tied = true})) == "the permutation belongs to another model");

  const auto write_with = [&](const char* format, int64_t version) {
    Hdf5Writer file(path);
    file.attribute("format", std::string_view(format));
    file.attribute("version", version);
    file.commit();
  };
  write_with("elastify.profile", 1);
  CHECK(message(spec) == "not a permutation file (attribute format is not elastify.permutation)");
  write_with("elastify.permutation", 2);
  CHECK(message(spec) == "version 2 of the format is not supported; supported is 1");
  write_text(path, "not HDF5");
  CHECK(message_of([&] { load_permutation(path, spec); }).starts_with(path.string()));
}

TEST_CASE("slice: each level is a prefix of the next, in rows and inside rows") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    std::vector<Widths> levels(3, full_widths(spec));
    for (size_t i = 0; i < spec.spaces.size(); ++i) {
      levels[0][i] = 1;
      levels[1][i] = (spec.spaces[i].n_units + 1) / 2;
    }
    for (const TensorSpec& tensor : spec.tensors) {
      CAPTURE(tensor.name);
      const HostTensor full = weights(tensor, DType::kF16);
      CHECK(same_bytes(slice(full, tensor, levels[2]), full));
      for (size_t level = 0; level < 2; ++level) {
        const HostTensor narrow = slice(full, tensor, levels[level]);
        const HostTensor wide = slice(full, tensor, levels[level + 1]);
        CHECK(narrow.shape == shape_at(tensor, levels[level]));
        const size_t narrow_row = narrow.bytes.size() / static_cast<size_t>(n_rows(narrow.shape));
        const size_t wide_row = wide.bytes.size() / static_cast<size_t>(n_rows(wide.shape));
        bool prefix = true;
        for (size_t row = 0; row < static_cast<size_t>(n_rows(narrow.shape)); ++row)
          prefix = prefix && std::equal(narrow.bytes.begin() + static_cast<long>(row * narrow_row),
                                        narrow.bytes.begin() + static_cast<long>((row + 1) * narrow_row),
                                        wide.bytes.begin() + static_cast<long>(row * wide_row));
        CHECK(prefix);
      }
    }
  }
}

TEST_CASE("slice: quantised rows are cut at whole blocks, other widths are refused with the nearest") {
  const ModelSpec spec = make_tiny_spec("llama", {.d_ff = 96});
  const TensorSpec& down = tensor_with(spec, Role::kDown);
  const HostTensor full = weights(down, DType::kQ8_0);
  const auto at = [&](int64_t d_ff) { return slice(full, down, {2, d_ff, 2, 96}); };
  CHECK(at(64).bytes.size() == 32 * 2 * 34);
  const HostTensor part = at(64);
  CHECK(std::equal(part.bytes.begin() + 68, part.bytes.begin() + 136, full.bytes.begin() + 102));
  CHECK(message_of([&] { at(70); }) ==
        "model.layers.0.mlp.down_proj.weight: q8_0 rows cannot be cut to 70 of 96 units: blocks hold 32 "
        "elements");
  CHECK(hint_of([&] { at(70); }) == "the nearest widths are 64 and 96");
  CHECK(hint_of([&] { at(5); }) == "the nearest width is 32");
  CHECK(message_of([&] { at(0); }) == "model.layers.0.mlp.down_proj.weight: width is 0, expected 1 to 96");
  CHECK(message_of([&] { at(97); }) == "model.layers.0.mlp.down_proj.weight: width is 97, expected 1 to 96");

  const TensorSpec& out = tensor_with(spec, Role::kAttnOut);
  CHECK(hint_of([&] { slice(weights(out, DType::kQ8_0), out, {1, 96, 2, 96}); }) == "the nearest width is 2");
}
