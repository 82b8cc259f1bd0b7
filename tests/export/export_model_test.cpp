#include "export/export_model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "base/version.h"
#include "io/gguf.h"
#include "model/families/families.h"
#include "model/rope_order.h"
#include "support/errors.h"
#include "support/exported_model.h"
#include "support/tensors.h"

namespace elastify {
namespace {

using exporter::export_model;
using test::check_file_prefixes;
using test::is_prefix;
using test::shuffled;
using test::uneven_plan;
using test::uniform_plan;
using test::wide_spec;
using Json = nlohmann::ordered_json;
using Model = test::ExportedModel;

Vocabulary tiny_vocabulary(int64_t n_tokens) {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kSentencePiece;
  vocabulary.pre = "default";
  vocabulary.tokens = {"<unk>", "<s>", "</s>"};
  vocabulary.types = {TokenType::kUnknown, TokenType::kControl, TokenType::kControl};
  for (int64_t i = 3; i < n_tokens; ++i) {
    vocabulary.tokens.push_back(fmt::format("t{}", i));
    vocabulary.types.push_back(TokenType::kNormal);
  }
  for (int64_t i = 0; i < n_tokens; ++i) vocabulary.scores.push_back(static_cast<float>(-i));
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  vocabulary.add_bos = true;
  vocabulary.chat_template = "{{ messages }}";
  return vocabulary;
}

/// Checks that a level, read back, is the slice of the full file, and that the full file is the source in the
/// exported type.
void check_levels(const Checkpoint& source, const ElasticPlan& plan, const fs::path& artifact, DType type,
                  const std::vector<exporter::ArtifactFile>& files) {
  const Checkpoint full = Checkpoint::open(artifact / "full.gguf");
  for (const auto& file : files) {
    CAPTURE(file.name);
    CAPTURE(file.architecture);
    const Level& level = find_level(plan, file.nominal);
    const Checkpoint sub = Checkpoint::open(artifact / file.name);
    const ModelSpec expected = narrowed(source.spec(), level.widths);
    CHECK(sub.spec().layer_d_ff == expected.layer_d_ff);
    CHECK(sub.spec().layer_kv_heads == expected.layer_kv_heads);
    CHECK(sub.spec().head_dim == expected.head_dim);
    CHECK(sub.spec().layer(0).heads_per_group == expected.layer(0).heads_per_group);
    CHECK(sub.spec().layer(0).rope_theta == expected.layer(0).rope_theta);
    CHECK(sub.spec().norm_eps == expected.norm_eps);
    CHECK(rope_frequency_divisors(sub.spec().layer(0), expected.head_dim) ==
          rope_frequency_divisors(expected.layer(0), expected.head_dim));
    REQUIRE(sub.spec().tensors.size() == source.spec().tensors.size());
    for (size_t i = 0; i < source.spec().tensors.size(); ++i) {
      const TensorSpec& tensor = source.spec().tensors[i];
      CAPTURE(tensor.name);
      const DType stored = tensor.shape.size() > 1 ? type : DType::kF32;
      const HostTensor whole = source.load(i, stored);
      const auto index = static_cast<size_t>(sub.spec().find(tensor.name));
      CHECK(test::same_bytes(sub.load(index), slice(whole, tensor, level.widths)));
      CHECK(is_prefix(sub.load(index), full.load(static_cast<size_t>(full.spec().find(tensor.name)))));
    }
  }
}

template <typename T>
bool holds(const GgufMetadata& keys, std::string_view key) {
  const GgufValue* value = keys.find(key);
  return value != nullptr && std::holds_alternative<T>(*value);
}
template <typename T>
bool holds_array(const GgufMetadata& keys, std::string_view key) {
  return holds<GgufArray>(keys, key) &&
         std::holds_alternative<std::vector<T>>(std::get<GgufArray>(*keys.find(key)).values);
}

}  // namespace

TEST_CASE("export: read back, every level of every family is the slice of the full model, in every type") {
  size_t n_exported = 0;
  for (const auto& [name, spec] : test::tiny_variants()) {
    if (spec.qk_norm && spec.qkv_bias) continue;  // no stock architecture
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const bool uneven : {false, true}) {
        if (uneven && spec.qk_norm && !spec.tied) continue;
        CAPTURE(name);
        CAPTURE(uneven);
        const Model model(spec);
        const Checkpoint source = model.open();
        const ElasticPlan plan = uneven ? uneven_plan(source.spec(), 8) : uniform_plan(source.spec(), 8);
        const fs::path target = model.make("artifact");
        const auto files = model.to(target, plan, {.types = {type}, .levels = {}});
        CHECK(files.size() == 3);
        check_levels(source, plan, target, type, files);
        ++n_exported;
      }
    }
  }
  CHECK(n_exported == 54);
}

TEST_CASE("export: q8_0 is encoded once, and every level holds whole blocks of the same rows") {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    CAPTURE(family);
    const ModelSpec spec = wide_spec(family, true);
    const Model model(spec, DType::kBF16);
    const ElasticPlan plan = uneven_plan(spec, 32);
    const fs::path target = model.make("artifact");
    const auto files = model.to(target, plan, {.types = {DType::kQ8_0}, .levels = {}});
    check_levels(model.open(), plan, target, DType::kQ8_0, files);
  }
}

TEST_CASE(
    "export: in the files themselves, a level's tensors are row prefixes and prefixes of rows of the full "
    "file's") {
  for (const DType type : {DType::kF32, DType::kF16, DType::kQ8_0}) {
    const ModelSpec spec = wide_spec("llama");
    const Model model(spec);
    const fs::path target = model.make("artifact");
    const auto files = model.to(target, uneven_plan(spec, 32), {.types = {type}, .levels = {}});
    REQUIRE(files.size() == 3);
    CHECK(files[0].architecture == "llama");
    CHECK(files[1].architecture == "deci");
    for (const auto& file : files) check_file_prefixes(target / file.name, target / "full.gguf");
  }
}

TEST_CASE("export: openelm fuses the rows of q, k and v, each a prefix of its own") {
  const ModelSpec spec = test::make_tiny_spec("qwen3", {.head_dim = 16, .tied = true});
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const auto files = model.to(target, uneven_plan(spec, 8), {.types = {DType::kF32}, .levels = {}});
  CHECK(files[0].architecture == "qwen3");
  CHECK(files[2].architecture == "openelm");
  const GgufFile narrow = GgufFile::open(target / files[2].name), full = GgufFile::open(target / "full.gguf");
  CHECK(narrow.contains("blk.0.attn_q_norm.weight"));
  CHECK_FALSE(narrow.contains("blk.0.attn_q.weight"));
  const HostTensor fused = narrow.tensor("blk.0.attn_qkv.weight");
  CHECK(fused.shape == Shape{(2 + 1 + 1) * 16, 32});  // one group: two query heads, k, v
  long at = 0;
  for (const auto& [name, rows] :
       {std::pair("attn_q", 32), std::pair("attn_k", 16), std::pair("attn_v", 16)}) {
    const HostTensor whole = full.tensor(fmt::format("blk.0.{}.weight", name));
    const long bytes = rows * 32 * 4;
    CHECK(std::equal(whole.bytes.begin(), whole.bytes.begin() + bytes, fused.bytes.begin() + at));
    at += bytes;
  }
}

TEST_CASE("export: q and k rows are interleaved for llama and deci alone, head by head, biases too") {
  const ModelSpec spec = test::make_tiny_spec("qwen2");
  const Model model(spec);
  const Checkpoint source = model.open();
  const fs::path target = model.make("artifact");
  model.to(target, uneven_plan(spec, 8), {.types = {DType::kF32}, .levels = {}});
  const GgufFile full = GgufFile::open(target / "full.gguf"),
                 deci = GgufFile::open(target / "level-050.gguf");
  for (const Role role :
       {Role::kQuery, Role::kKey, Role::kQueryBias, Role::kKeyBias, Role::kValue, Role::kValueBias}) {
    const auto index = static_cast<size_t>(spec.find(role, 1));
    const TensorSpec& tensor = spec.tensors[index];
    CAPTURE(tensor.name);
    const HostTensor halves = source.load(index);
    const bool value = role == Role::kValue || role == Role::kValueBias;
    CHECK(test::same_bytes(full.tensor(tensor.gguf_name), halves));
    CHECK(test::same_bytes(
        deci.tensor(tensor.gguf_name),
        value ? halves
              : reorder_rope_rows(halves, spec.head_dim, RopeOrder::kHalves, RopeOrder::kInterleaved)));
  }
}

TEST_CASE("export: metadata has the types that stock llama.cpp insists on") {
  const ModelSpec spec =
      test::make_tiny_spec("llama", {.head_dim = 16, .heads_per_group = 3, .llama3_rope = true});
  const Model model(spec);
  const Vocabulary vocabulary = tiny_vocabulary(spec.n_vocab);
  const fs::path target = model.make("artifact");
  const ElasticPlan plan = uneven_plan(spec, 8);
  model.to(target, plan, {.types = {DType::kF16}, .levels = {}}, &vocabulary);

  const GgufFile file = GgufFile::open(target / "level-050.gguf");
  const GgufMetadata& keys = file.metadata();
  CHECK(keys.require_string("general.architecture") == "deci");
  CHECK(keys.require_string("general.type") == "model");
  CHECK(std::get<uint32_t>(*keys.find("general.file_type")) == 1);
  CHECK_FALSE(keys.contains("general.quantization_version"));
  for (const char* key :
       {"deci.block_count", "deci.context_length", "deci.embedding_length", "deci.attention.key_length",
        "deci.attention.value_length", "deci.rope.dimension_count", "deci.vocab_size"})
    CHECK_MESSAGE(holds<uint32_t>(keys, key), key);
  for (const char* key :
       {"deci.feed_forward_length", "deci.attention.head_count", "deci.attention.head_count_kv"})
    CHECK_MESSAGE(holds_array<int32_t>(keys, key), key);
  for (const char* key : {"deci.attention.layer_norm_rms_epsilon", "deci.rope.freq_base"})
    CHECK_MESSAGE(holds<float>(keys, key), key);
  CHECK(*keys.integers("deci.feed_forward_length") == std::vector<int64_t>{8, 64});
  CHECK(*keys.integers("deci.attention.head_count") == std::vector<int64_t>{3, 6});
  CHECK(*keys.integers("deci.attention.head_count_kv") == std::vector<int64_t>{1, 2});
  CHECK(keys.require_integer("deci.attention.key_length") == 16);
  CHECK(keys.require_number("deci.rope.freq_base") == 500000);
  CHECK(keys.require_integer("deci.context_length") == 64);
  const HostTensor factors = file.tensor("rope_freqs.weight");
  CHECK(factors.dtype == DType::kF32);
  CHECK(test::values_of(factors) == rope_frequency_divisors(spec.layer(0), spec.head_dim));

  CHECK(keys.require_string("elastify.version") == kVersion);
  CHECK(std::get<float>(*keys.find("elastify.level")) == 0.5F);
  CHECK(*keys.floats("elastify.levels") == std::vector<float>{0.5F, 0.75F, 1});
  CHECK(std::get<float>(*keys.find("elastify.decoder_ratio")) ==
        static_cast<float>(plan.levels[0].decoder_ratio));
  CHECK(std::get<bool>(*keys.find("elastify.full")) == false);
  CHECK(holds_array<int32_t>(keys, "elastify.kv_groups"));
  CHECK(*keys.integers("elastify.kv_groups") == std::vector<int64_t>{1, 2});
  CHECK(*keys.integers("elastify.d_ff") == std::vector<int64_t>{8, 64});
  CHECK(keys.require_string("elastify.spec_hash") == spec_hash(spec));
  CHECK(keys.require_string("elastify.permutation_digest") == digest(identity_permutation(spec)));
  CHECK(*keys.strings("tokenizer.ggml.tokens") == vocabulary.tokens);
  CHECK(keys.require_string("tokenizer.chat_template") == "{{ messages }}");

  const GgufFile full_file = GgufFile::open(target / "full.gguf");
  const GgufMetadata& full = full_file.metadata();
  CHECK(full.require_string("general.architecture") == "llama");
  CHECK(std::get<bool>(*full.find("elastify.full")) == true);
  for (const char* key :
       {"llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv"})
    CHECK_MESSAGE(holds<uint32_t>(full, key), key);
  for (const auto& [key, value] : keys.entries()) CHECK_FALSE_MESSAGE(key.starts_with("llama."), key);
  for (const TensorInfo& tensor : full_file.tensors()) {
    const bool matrix = tensor.shape.size() > 1;
    CHECK(tensor.dtype == (matrix ? DType::kF16 : DType::kF32));
  }
}

TEST_CASE("export: linear rope scaling is said in keys, a sliding window bounds the context") {
  ModelSpec spec = test::make_tiny_spec("mistral", {.sliding_window = 8});
  for (LayerSpec& layer : spec.layers)
    layer.rope = {.kind = RopeScaling::Kind::kLinear, .factor = 4, .factors = {}};
  complete_spec(spec);
  const Model model(spec);
  const fs::path target = model.make("artifact");
  model.to(target, uniform_plan(spec, 8), {.types = {DType::kF32}, .levels = {}});
  const GgufFile file = GgufFile::open(target / "full.gguf");
  CHECK(file.metadata().require_string("llama.rope.scaling.type") == "linear");
  CHECK(std::get<float>(*file.metadata().find("llama.rope.scaling.factor")) == 4);
  CHECK(file.metadata().require_integer("llama.context_length") == 8);
  CHECK_FALSE(file.contains("rope_freqs.weight"));
}

TEST_CASE("export: quantised files say so") {
  const ModelSpec spec = wide_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  model.to(target, uniform_plan(spec, 32, {0.8}), {.types = {DType::kQ8_0}, .levels = {}});
  const GgufFile file = GgufFile::open(target / "full.gguf");
  CHECK(std::get<uint32_t>(*file.metadata().find("general.quantization_version")) == 2);
  CHECK(std::get<uint32_t>(*file.metadata().find("general.file_type")) == 7);
}

TEST_CASE("export: without a vocabulary the files say no_vocab; a small one is padded, a large one refused") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const ElasticPlan plan = uniform_plan(spec, 8);
  const fs::path none = model.make("none"), padded = model.make("padded"), refused = model.make("refused");
  model.to(none, plan, {.types = {DType::kF32}, .levels = {}});
  const GgufFile silent = GgufFile::open(none / "full.gguf");
  CHECK(silent.metadata().require_string("tokenizer.ggml.model") == "no_vocab");
  CHECK(std::get<uint32_t>(*silent.metadata().find("llama.vocab_size")) == 96);

  const Vocabulary small = tiny_vocabulary(90);
  model.to(padded, plan, {.types = {DType::kF32}, .levels = {}}, &small);
  const Vocabulary read = load_vocabulary(padded / "full.gguf");
  REQUIRE(read.size() == 96);
  CHECK(read.tokens[89] == "t89");
  CHECK(read.tokens[95] == "[PAD95]");
  CHECK(read.types[95] == TokenType::kUnused);

  const Vocabulary large = tiny_vocabulary(97);
  CHECK(test::message_of([&] { model.to(refused, plan, {.types = {DType::kF32}, .levels = {}}, &large); }) ==
        "the tokenizer has 97 tokens, the embedding only 96 rows");
  CHECK(fs::is_empty(refused));
}

TEST_CASE(
    "export: tokenizer.gguf beside the model gives the tokenizer's keys verbatim, and name and licence") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  GgufMetadata kept;
  kept.set("general.architecture", std::string("llama"));
  kept.set("general.name", std::string("Tiny"));
  kept.set("general.license", std::string("apache-2.0"));
  kept.set("general.size_label", std::string("1B"));
  write_gguf_keys(tiny_vocabulary(96), kept);
  kept.set("tokenizer.ggml.unheard_of", GgufArray{std::vector<uint16_t>{1, 2}});
  GgufWriter(model.path / "tokenizer.gguf", kept, {}).finish();

  const Vocabulary other = tiny_vocabulary(50);
  const fs::path target = model.make("artifact");
  model.to(target, uniform_plan(spec, 8), {.types = {DType::kF32}, .levels = {}}, &other);
  for (const char* name : {"full.gguf", "level-060.gguf"}) {
    const GgufFile file = GgufFile::open(target / name);
    CHECK(file.metadata().strings("tokenizer.ggml.tokens")->at(60) == "t60");
    CHECK(holds_array<uint16_t>(file.metadata(), "tokenizer.ggml.unheard_of"));
    CHECK(file.metadata().require_string("general.name") == "Tiny");
    CHECK(file.metadata().require_string("general.license") == "apache-2.0");
    CHECK_FALSE(file.metadata().contains("general.size_label"));
  }

  write_gguf_keys(tiny_vocabulary(95), kept);
  GgufWriter(model.path / "tokenizer.gguf", kept, {}).finish();
  const fs::path refused = model.make("refused");
  CHECK(test::message_of([&] {
          model.to(refused, uniform_plan(spec, 8), {.types = {DType::kF32}, .levels = {}});
        }).find("expected one token for each of the 96 rows of the embedding, got 95") != std::string::npos);
}

TEST_CASE("export: the manifest lists every file with its size and hash") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const Checkpoint source = model.open();
  const Permutation permutation = shuffled(spec);
  const ElasticPlan plan = uniform_plan(spec, 8);
  const fs::path target = model.make("artifact");
  const auto files = export_model(source, nullptr, permutation, plan, {.types = {DType::kF16}, .levels = {}},
                                  {{"type", "f16"}}, target);
  const Json manifest = Json::parse(read_text(target / "manifest.json"));
  std::vector<std::string> keys;
  for (const auto& [key, value] : manifest.items()) keys.push_back(key);
  CHECK(keys == std::vector<std::string>{"format", "version", "tool", "spec_hash", "permutation_digest",
                                         "type", "configuration", "files"});
  CHECK(manifest.at("format") == "elastify.artifact");
  CHECK(manifest.at("tool").at("version") == std::string(kVersion));
  CHECK(manifest.at("spec_hash") == spec_hash(spec));
  CHECK(manifest.at("permutation_digest") == digest(permutation));
  CHECK(manifest.at("type") == "f16");
  CHECK(manifest.at("configuration") == Json{{"type", "f16"}});
  REQUIRE(manifest.at("files").size() == files.size());
  std::vector<std::string> names;
  for (size_t i = 0; i < files.size(); ++i) {
    const Json& listed = manifest.at("files")[i];
    const Level& level = find_level(plan, files[i].nominal);
    const fs::path path = target / files[i].name;
    names.push_back(files[i].name);
    CHECK(listed.at("name") == files[i].name);
    CHECK(listed.at("level") == level.nominal);
    CHECK(listed.at("decoder_ratio") == level.decoder_ratio);
    CHECK(listed.at("total_ratio") == level.total_ratio);
    CHECK(listed.at("n_params") == n_params(spec, level.widths));
    CHECK(listed.at("bytes") == fs::file_size(path));
    CHECK(listed.at("sha256") == sha256_file(path));
  }
  CHECK(names == std::vector<std::string>{"full.gguf", "level-080.gguf", "level-060.gguf"});
}

TEST_CASE("export: every file gets an importance matrix with its own tensor names and columns") {
  struct Case {
    ModelSpec spec;
    const char* narrow_architecture;
    const char* query;
  };
  for (const Case& made :
       {Case{test::make_tiny_spec("llama"), "deci", "blk.0.attn_q.weight"},
        Case{test::make_tiny_spec("qwen3", {.tied = true}), "openelm", "blk.0.attn_qkv.weight"}}) {
    const ModelSpec& spec = made.spec;
    CAPTURE(spec.family);
    const Model model(spec);
    const Checkpoint source = model.open();
    const Permutation permutation = shuffled(spec);
    const ElasticPlan plan = uneven_plan(spec, 8);
    Imatrix imatrix{
        .entries = {}, .datasets = {"text"}, .chunk_count = 2, .chunk_size = 8, .permutation_digest = {}};
    for (const TensorSpec& tensor : spec.tensors)
      if (site_of(tensor.role)) {
        auto& entry = imatrix.entries[tensor.gguf_name] = {{}, 16};
        for (int64_t j = 0; j < tensor.shape.back(); ++j) entry.sum_squares.push_back(static_cast<float>(j));
      }
    const fs::path target = model.make("artifact");
    const auto files = export_model(source, nullptr, permutation, plan,
                                    {.types = {DType::kF32}, .levels = {}}, Json::object(), target, &imatrix);
    REQUIRE(files.size() == 3);
    CHECK(files.back().architecture == made.narrow_architecture);
    const Json manifest = Json::parse(read_text(target / "manifest.json"));
    CHECK(manifest.at("files").size() == 3);
    REQUIRE(manifest.at("imatrices").size() == 3);
    const std::vector<std::string> names{"imatrix.gguf", "imatrix-075.gguf", "imatrix-050.gguf"};
    for (size_t i = 0; i < files.size(); ++i) {
      const Json& listed = manifest.at("imatrices")[i];
      CAPTURE(names[i]);
      CHECK(listed.at("name") == names[i]);
      CHECK(listed.at("level") == files[i].nominal);
      CHECK(listed.at("bytes") == fs::file_size(target / names[i]));
      CHECK(listed.at("sha256") == sha256_file(target / names[i]));
      const Imatrix read = load_imatrix(target / names[i]);
      CHECK(read.permutation_digest == digest(permutation));
      // Every matrix of the layers in the model's file has an entry with as many columns. There are no other
      // entries.
      const GgufFile file = GgufFile::open(target / files[i].name);
      size_t n = 0;
      for (const TensorInfo& tensor : file.tensors()) {
        if (tensor.shape.size() < 2 || !tensor.name.starts_with("blk.")) continue;
        CAPTURE(tensor.name);
        REQUIRE(read.entries.count(tensor.name) == 1);
        CHECK(static_cast<int64_t>(read.entries.at(tensor.name).sum_squares.size()) == tensor.shape.back());
        ++n;
      }
      CHECK(read.entries.size() == n);
    }
    const Imatrix narrow = load_imatrix(target / "imatrix-050.gguf");
    CHECK(narrow.entries.count(made.query) == 1);
    const auto& down = narrow.entries.at("blk.0.ffn_down.weight").sum_squares;
    REQUIRE(down.size() == 8);
    for (size_t j = 0; j < down.size(); ++j)
      CHECK(down[j] == static_cast<float>(permutation.orders[spec.mlp_space(0)][j]));

    imatrix.entries.at("blk.1.ffn_up.weight").sum_squares.pop_back();
    const fs::path refused = model.make("refused");
    CHECK(test::message_of([&] {
            export_model(source, nullptr, permutation, plan, {.types = {DType::kF32}, .levels = {}},
                         Json::object(), refused, &imatrix);
          }) == "blk.1.ffn_up.weight: expected 32 columns, got 31");
    CHECK(fs::is_empty(refused));
  }
}

TEST_CASE("export: only the levels asked for are written, and always the full model") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const ElasticPlan plan = uniform_plan(spec, 8);
  const fs::path target = model.make("artifact");
  const auto files = model.to(target, plan, {.types = {DType::kF32}, .levels = {0.6}});
  REQUIRE(files.size() == 2);
  CHECK(files[1].name == "level-060.gguf");
  CHECK_FALSE(fs::exists(target / "level-080.gguf"));
  CHECK(*GgufFile::open(target / "full.gguf").metadata().floats("elastify.levels") ==
        std::vector<float>{0.6F, 1});
  const fs::path other = model.make("other");
  CHECK_THROWS_AS(model.to(other, plan, {.types = {DType::kF32}, .levels = {0.55}}), UsageError);
  CHECK(fs::is_empty(other));
}

TEST_CASE("export: two runs write the same bytes") {
  const ModelSpec spec = wide_spec("qwen3", true);
  const Model model(spec);
  const Vocabulary vocabulary = tiny_vocabulary(40);
  const fs::path one = model.make("one"), two = model.make("two");
  for (const fs::path& target : {one, two})
    model.to(target, uneven_plan(spec, 32), {.types = {DType::kQ8_0}, .levels = {}}, &vocabulary);
  for (const auto& entry : fs::directory_iterator(one))
    CHECK(sha256_file(entry.path()) == sha256_file(two / entry.path().filename()));
}

}  // namespace elastify
