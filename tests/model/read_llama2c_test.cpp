#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "io/llama2c.h"
#include "model/checkpoint.h"
#include "model/rope_order.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// Appends one kind of tensor, layer by layer, as export.py's legacy_export does.
void append(std::string& bytes, const ModelSpec& spec, Role role, uint64_t seed) {
  for (const TensorSpec& tensor : spec.tensors) {
    if (tensor.role != role) continue;
    HostTensor stored = tensor_of(tiny_weights(tensor, seed), tensor.shape);
    if (role == Role::kQuery || role == Role::kKey)
      stored = reorder_rope_rows(stored, spec.head_dim, RopeOrder::kHalves, RopeOrder::kInterleaved);
    bytes.append(reinterpret_cast<const char*>(stored.bytes.data()), stored.bytes.size());
  }
}

std::string version_0(const ModelSpec& spec, uint64_t seed) {
  const int32_t vocab = static_cast<int32_t>(spec.tied ? spec.n_vocab : -spec.n_vocab);
  const int32_t header[7] = {static_cast<int32_t>(spec.d_model),      static_cast<int32_t>(spec.d_ff()),
                             static_cast<int32_t>(spec.n_layers),     static_cast<int32_t>(spec.n_heads()),
                             static_cast<int32_t>(spec.n_kv_heads()), vocab,
                             static_cast<int32_t>(spec.max_seq)};
  std::string bytes(reinterpret_cast<const char*>(header), sizeof header);
  for (const Role role :
       {Role::kTokenEmbedding, Role::kAttnNorm, Role::kQuery, Role::kKey, Role::kValue, Role::kAttnOut,
        Role::kFfnNorm, Role::kGate, Role::kDown, Role::kUp, Role::kOutputNorm})
    append(bytes, spec, role, seed);
  bytes.append(static_cast<size_t>(spec.max_seq * spec.head_dim) * sizeof(float), '\0');  // freq_cis
  append(bytes, spec, Role::kOutput, seed);
  return bytes;
}

}  // namespace

TEST_CASE("read llama2c: a written model is read back in Hugging Face's row order") {
  for (const bool tied : {true, false}) {
    CAPTURE(tied);
    const ModelSpec spec = make_tiny_spec("llama", {.tied = tied});
    const TemporaryDirectory directory;
    write_text(directory / "m.bin", version_0(spec, 3));
    const Checkpoint model = Checkpoint::open(directory / "m.bin");
    CHECK(model.format() == SourceFormat::kLlama2c);
    CHECK(model.spec().norm_eps == 1e-5);
    CHECK(model.spec().layer(0).rope_theta == 10000);
    CHECK(spec_hash(model.spec()) == spec_hash(spec));
    REQUIRE(model.spec().tensors.size() == spec.tensors.size());
    for (size_t i = 0; i < spec.tensors.size(); ++i) {
      CAPTURE(spec.tensors[i].name);
      CHECK(values_of(model.load(i)) == tiny_weights(spec.tensors[i], 3));
    }
  }
}

TEST_CASE("read llama2c: a file cut short says how long it should be") {
  const std::string bytes = version_0(make_tiny_spec("llama", {.tied = true}), 3);
  const TemporaryDirectory directory;
  write_text(directory / "m.bin", bytes.substr(0, bytes.size() - 4));
  const std::string message = message_of([&] { Checkpoint::open(directory / "m.bin"); });
  CHECK(message.find(std::to_string(bytes.size())) != std::string::npos);
}

TEST_CASE("read llama2c: published models are read whole") {
  if (!has_shared_data()) return;
  struct Case {
    const char* name;
    int64_t d_model, n_layers, n_heads, n_kv_heads, n_vocab;
  };
  for (const Case& each : {Case{"models/stories260K/stories260K.bin", 64, 5, 8, 4, 512},
                           Case{"models/aidreams260K/aidreams260K.bin", 0, 0, 0, 0, 512},
                           Case{"models/stories3M/stories3M-q80.bin", 0, 0, 0, 0, 4096}}) {
    CAPTURE(each.name);
    const Checkpoint model = Checkpoint::open(shared_data() / each.name);
    const ModelSpec& spec = model.spec();
    CHECK(spec.n_vocab == each.n_vocab);
    if (each.d_model > 0) {
      CHECK(spec.d_model == each.d_model);
      CHECK(spec.n_layers == each.n_layers);
      CHECK(spec.n_heads() == each.n_heads);
      CHECK(spec.n_kv_heads() == each.n_kv_heads);
    }
    for (size_t i = 0; i < spec.tensors.size(); ++i) {
      const std::vector<float> values = values_of(model.load(i));
      CHECK(std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }));
      CHECK(std::any_of(values.begin(), values.end(), [](float value) { return value != 0; }));
    }
  }
}
