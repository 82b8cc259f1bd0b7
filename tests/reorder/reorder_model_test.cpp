#include "reorder/reorder_model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "base/hash.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "plan/make_plan.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using reorder::reorder_model;
using reorder::ReorderOptions;

Permutation shuffled(const ModelSpec& spec, uint64_t seed = 7) {
  Permutation permutation = identity_permutation(spec);
  permutation.metric = "random";
  std::mt19937_64 random(seed);
  for (auto& order : permutation.orders) std::shuffle(order.begin(), order.end(), random);
  return permutation;
}

ElasticPlan half_plan(const ModelSpec& spec) {
  plan::PlanOptions options;
  options.grid = 8;
  options.levels = {0.7};
  return plan::make_plan(spec, nullptr, options);
}

Vocabulary tiny_vocabulary() {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kByteLevelBpe;
  vocabulary.pre = "gpt-2";
  for (char c = 'a'; c <= 'z'; ++c) vocabulary.tokens.push_back(std::string(1, c));
  vocabulary.tokens.push_back("ab");
  vocabulary.merges = {"a b"};
  vocabulary.types.assign(vocabulary.tokens.size(), TokenType::kNormal);
  return vocabulary;
}

/// Writes a GGUF file with every tensor as in `source`. Its architecture is qwen2, which keeps halves order.
void write_qwen2_gguf(const Checkpoint& source, const Vocabulary& vocabulary, const fs::path& path) {
  const ModelSpec& spec = source.spec();
  GgufMetadata keys;
  keys.set("general.architecture", std::string("qwen2"));
  keys.set("general.name", std::string("Tiny"));
  keys.set("general.license", std::string("apache-2.0"));
  keys.set("general.file_type", uint32_t{0});
  keys.set("qwen2.block_count", static_cast<uint32_t>(spec.n_layers));
  keys.set("qwen2.context_length", static_cast<uint32_t>(spec.max_seq));
  keys.set("qwen2.embedding_length", static_cast<uint32_t>(spec.d_model));
  keys.set("qwen2.feed_forward_length", static_cast<uint32_t>(spec.d_ff()));
  keys.set("qwen2.attention.head_count", static_cast<uint32_t>(spec.n_heads()));
  keys.set("qwen2.attention.head_count_kv", static_cast<uint32_t>(spec.n_kv_heads()));
  keys.set("qwen2.attention.layer_norm_rms_epsilon", 1e-6F);
  write_gguf_keys(vocabulary, keys);
  keys.set("tokenizer.ggml.unheard_of", std::string("kept"));
  std::vector<TensorInfo> tensors;
  for (const TensorSpec& tensor : spec.tensors)
    tensors.push_back({tensor.gguf_name, DType::kF32, tensor.shape});
  GgufWriter writer(path, keys, tensors);
  for (size_t i = 0; i < spec.tensors.size(); ++i) writer.write(source.load(i, DType::kF32).bytes);
  writer.finish();
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

struct Reordered {
  test::TemporaryDirectory directory;
  fs::path source = directory / "source", target = directory / "target";
  explicit Reordered(const ModelSpec& spec, DType dtype = DType::kF32) {
    test::write_tiny_hf_model(spec, source, 3, dtype);
    fs::create_directories(target);
  }
};

}  // namespace

TEST_CASE("reorder: undoing the permutation restores identical bytes, in every family") {
  for (const auto& [name, spec] : test::tiny_variants()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      CAPTURE(name);
      const Reordered paths(spec, dtype);
      const Checkpoint source = Checkpoint::open(paths.source);
      const Permutation permutation = shuffled(source.spec());
      reorder_model(source, nullptr, permutation, half_plan(source.spec()), {}, paths.target);
      CHECK(reorder::is_reordered(paths.target));
      CHECK_FALSE(reorder::is_reordered(paths.source));

      const Checkpoint reordered = Checkpoint::open(paths.target);
      CHECK(spec_hash(reordered.spec()) == spec_hash(source.spec()));
      const Permutation stored = load_permutation(paths.target / "permutation.h5", reordered.spec());
      CHECK(stored.orders == permutation.orders);
      CHECK(stored.metric == "random");
      CHECK(load_plan(paths.target / "plan.json", reordered.spec()).levels.size() == 2);
      bool moved = false;
      for (size_t i = 0; i < spec.tensors.size(); ++i) {
        CAPTURE(spec.tensors[i].name);
        const HostTensor before = source.load(i), after = reordered.load(i);
        CHECK(test::same_bytes(permute(after, spec.tensors[i], inverse(permutation)), before));
        moved |= !test::same_bytes(after, before);
      }
      CHECK(moved);
    }
  }
}

TEST_CASE("reorder: config.json is the source's own, byte for byte, unless the stored type changes") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  Reordered paths(spec, DType::kBF16);
  auto config = nlohmann::ordered_json::parse(read_text(paths.source / "config.json"));
  config["dtype"] = "bfloat16";
  config["unheard_of"] = {{"a", 1}};
  write_text(paths.source / "config.json", config.dump());
  const Checkpoint source = Checkpoint::open(paths.source);
  reorder_model(source, nullptr, shuffled(spec), half_plan(spec), {}, paths.target);
  CHECK(read_text(paths.target / "config.json") == config.dump());

  const fs::path other = paths.directory / "other";
  fs::create_directories(other);
  reorder_model(source, nullptr, shuffled(spec), half_plan(spec), {.dtype = "f16"}, other);
  const auto written = nlohmann::ordered_json::parse(read_text(other / "config.json"));
  config["dtype"] = config["torch_dtype"] = "float16";
  CHECK(written == config);
  CHECK(Checkpoint::open(other).lossless_dtype() == DType::kF16);
}

TEST_CASE("reorder: tokenizer and licence files of the source are copied unchanged, other files are not") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Reordered paths(spec);
  const std::vector<std::string> kept = {"LICENSE",
                                         "README.md",
                                         "added_tokens.json",
                                         "chat_template.jinja",
                                         "generation_config.json",
                                         "merges.txt",
                                         "special_tokens_map.json",
                                         "tokenizer.json",
                                         "tokenizer.model",
                                         "tokenizer_config.json",
                                         "vocab.json"};
  for (const std::string& name : kept) write_text(paths.source / name, "content of " + name);
  for (const char* name : {"pytorch_model.bin", "notes.txt", "optimizer.json"})
    write_text(paths.source / name, "no");
  const Vocabulary vocabulary = tiny_vocabulary();  // the files take precedence
  reorder_model(Checkpoint::open(paths.source), &vocabulary, shuffled(spec), half_plan(spec), {},
                paths.target);
  for (const std::string& name : kept) CHECK(read_text(paths.target / name) == "content of " + name);
  std::vector<std::string> expected = kept;
  for (const char* name : {"config.json", "model.safetensors", "permutation.h5", "plan.json"})
    expected.push_back(name);
  std::sort(expected.begin(), expected.end());
  CHECK(names_in(paths.target) == expected);
}

TEST_CASE("reorder: a directory without a tokenizer gets the vocabulary that was given") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Reordered paths(spec);
  const Vocabulary vocabulary = tiny_vocabulary();
  reorder_model(Checkpoint::open(paths.source), &vocabulary, shuffled(spec), half_plan(spec), {},
                paths.target);
  CHECK(load_vocabulary(paths.target).tokens == vocabulary.tokens);
}

TEST_CASE("reorder: tokenizer.gguf keeps the tokenizer's keys and the name of a GGUF source verbatim") {
  const ModelSpec spec = test::make_tiny_spec("qwen2", {.tied = true});
  const Reordered paths(spec);
  Vocabulary vocabulary = tiny_vocabulary();
  pad_vocabulary(vocabulary, spec.n_vocab);
  const fs::path file = paths.directory / "model.gguf";
  write_qwen2_gguf(Checkpoint::open(paths.source), vocabulary, file);
  const Checkpoint source = Checkpoint::open(file);
  const Permutation permutation = shuffled(source.spec());
  reorder_model(source, &vocabulary, permutation, half_plan(source.spec()), {}, paths.target);

  const GgufFile original = GgufFile::open(file), kept = GgufFile::open(paths.target / "tokenizer.gguf");
  CHECK(kept.tensors().empty());
  CHECK(kept.metadata().require_string("tokenizer.ggml.unheard_of") == "kept");
  CHECK(kept.metadata().require_string("general.name") == "Tiny");
  CHECK(kept.metadata().require_string("general.license") == "apache-2.0");
  CHECK_FALSE(kept.metadata().contains("general.file_type"));
  CHECK_FALSE(kept.metadata().contains("qwen2.block_count"));
  CHECK(*kept.metadata().strings("tokenizer.ggml.tokens") ==
        *original.metadata().strings("tokenizer.ggml.tokens"));
  CHECK(load_vocabulary(paths.target).size() > 0);

  const Checkpoint reordered = Checkpoint::open(paths.target);
  CHECK(reordered.spec().family == "qwen2");
  for (size_t i = 0; i < spec.tensors.size(); ++i)
    CHECK(
        test::same_bytes(permute(reordered.load(i), spec.tensors[i], inverse(permutation)), source.load(i)));

  // Reordering the result keeps them, too.
  const fs::path again = paths.directory / "again";
  fs::create_directories(again);
  reorder_model(reordered, nullptr, permutation, half_plan(spec), {}, again);
  CHECK(read_text(again / "tokenizer.gguf") == read_text(paths.target / "tokenizer.gguf"));
}

TEST_CASE("reorder: large models are written in shards with an index, and read back the same") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Reordered paths(spec);
  const Checkpoint source = Checkpoint::open(paths.source);
  reorder_model(source, nullptr, shuffled(spec), half_plan(spec), {}, paths.target);
  for (const uint64_t shard_bytes : {uint64_t{1}, uint64_t{20000}}) {
    const fs::path sharded = paths.directory / fmt::format("sharded-{}", shard_bytes);
    fs::create_directories(sharded);
    reorder_model(source, nullptr, shuffled(spec), half_plan(spec), {.dtype = "", .shard_bytes = shard_bytes},
                  sharded);
    const auto index = nlohmann::json::parse(read_text(sharded / "model.safetensors.index.json"));
    CHECK(index.at("metadata").at("total_size").get<int64_t>() == 4 * n_params(spec, full_widths(spec)));
    CHECK(index.at("weight_map").size() == spec.tensors.size());
    const auto first = index.at("weight_map").at(spec.tensors[0].name).get<std::string>();
    CHECK(first.starts_with("model-00001-of-000"));
    CHECK_FALSE(fs::exists(sharded / "model.safetensors"));
    const Checkpoint one = Checkpoint::open(paths.target), many = Checkpoint::open(sharded);
    for (size_t i = 0; i < spec.tensors.size(); ++i) CHECK(test::same_bytes(one.load(i), many.load(i)));
  }
}

TEST_CASE("reorder: two runs write the same bytes") {
  const ModelSpec spec = test::make_tiny_spec("qwen3", {.tied = true});
  const Reordered paths(spec);
  const Checkpoint source = Checkpoint::open(paths.source);
  const Vocabulary vocabulary = tiny_vocabulary();
  const fs::path again = paths.directory / "again";
  fs::create_directories(again);
  for (const fs::path& target : {paths.target, again})
    reorder_model(source, &vocabulary, shuffled(spec), half_plan(spec), {.dtype = "bf16"}, target);
  REQUIRE(names_in(paths.target) == names_in(again));
  for (const std::string& name : names_in(again))
    CHECK(sha256_file(paths.target / name) == sha256_file(again / name));
}

TEST_CASE("reorder: inputs that do not belong together are refused, and nothing is left behind") {
  const ModelSpec spec = test::make_tiny_spec("llama"), other = test::make_tiny_spec("llama", {.d_ff = 80});
  const Reordered paths(spec);
  const Checkpoint source = Checkpoint::open(paths.source);
  const auto message = [&](const Permutation& permutation, const ElasticPlan& plan,
                           const ReorderOptions& options, const Vocabulary* vocabulary = nullptr) {
    const std::string text = test::message_of(
        [&] { reorder_model(source, vocabulary, permutation, plan, options, paths.target); });
    CHECK(fs::is_empty(paths.target));
    return text;
  };
  CHECK(message(shuffled(other), half_plan(spec), {}).find("layers.0.mlp: expected 64 units, got 80") !=
        std::string::npos);
  CHECK(message(shuffled(spec), half_plan(other), {}) == "the plan belongs to another model");
  CHECK(message(shuffled(spec), half_plan(spec), {.dtype = "q8_0"}) ==
        "dtype: models cannot be stored as 'q8_0'");
  CHECK(message(shuffled(spec), half_plan(spec), {.dtype = "int3"}) ==
        "dtype: models cannot be stored as 'int3'");
  Vocabulary word_pieces = tiny_vocabulary();
  word_pieces.kind = TokenizerKind::kWordPiece;
  CHECK(message(shuffled(spec), half_plan(spec), {}, &word_pieces) != "no error");

  const Checkpoint broken = source.transformed([](size_t index, HostTensor tensor) {
    if (index == 5) fail("unreadable");
    return tensor;
  });
  const auto reorder_broken = [&] {
    reorder_model(broken, nullptr, shuffled(spec), half_plan(spec), {}, paths.target);
  };
  CHECK(test::message_of(reorder_broken) == spec.tensors[5].name + ": unreadable");
  CHECK(fs::is_empty(paths.target));

  write_text(paths.target / "there", "before");
  CHECK(test::message_of([&] {
          reorder_model(source, nullptr, shuffled(spec), half_plan(spec), {}, paths.target);
        }).find("expected an empty directory") != std::string::npos);
  CHECK(fs::exists(paths.target / "there"));
}

}  // namespace elastify
