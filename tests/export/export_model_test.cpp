#include "export/export_model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <tuple>

#include "base/hash.h"
#include "base/progress.h"
#include "base/version.h"
#include "io/gguf.h"
#include "model/families/families.h"
#include "model/rope_order.h"
#include "plan/make_plan.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using exporter::export_model;
using exporter::ExportOptions;
using Json = nlohmann::ordered_json;

/// A third of the first layer's MLP and groups, all of the other's, and something in between.
ElasticPlan uneven_plan(const ModelSpec& spec, int64_t grid) {
  ElasticPlan plan;
  plan.spec_hash = spec_hash(spec);
  plan.method = "anchors";
  plan.grid = grid;
  plan.anchors = {1};
  Widths narrow = full_widths(spec), middle = narrow;
  narrow[spec.attention_space(0)] = 1;
  narrow[spec.mlp_space(0)] = grid;
  middle[spec.mlp_space(0)] = std::max(grid, middle[spec.mlp_space(0)] - grid);
  plan.levels = {make_level(spec, 0.5, narrow), make_level(spec, 0.75, middle),
                 make_level(spec, 1, full_widths(spec))};
  return plan;
}

ElasticPlan uniform_plan(const ModelSpec& spec, int64_t grid, std::vector<double> levels = {0.6, 0.8}) {
  plan::PlanOptions options;
  options.grid = grid;
  options.levels = std::move(levels);
  return plan::make_plan(spec, nullptr, options);
}

Permutation shuffled(const ModelSpec& spec) {
  Permutation permutation = identity_permutation(spec);
  std::mt19937_64 random(5);
  for (auto& order : permutation.orders) std::shuffle(order.begin(), order.end(), random);
  return permutation;
}

/// A tiny model on disk and places to export it to.
struct Model {
  test::TemporaryDirectory directory;
  fs::path path = directory / "model";
  explicit Model(const ModelSpec& spec, DType dtype = DType::kF32) {
    test::write_tiny_hf_model(spec, path, 11, dtype);
  }
  Checkpoint open() const { return Checkpoint::open(path); }
  fs::path make(const std::string& name) const {
    fs::create_directories(directory / name);
    return directory / name;
  }
  std::vector<exporter::ArtifactFile> to(const fs::path& target, const ElasticPlan& plan,
                                         const ExportOptions& options,
                                         const Vocabulary* vocabulary = nullptr) const {
    const Checkpoint source = open();
    return export_model(source, vocabulary, identity_permutation(source.spec()), plan, options,
                        Json::object(), target);
  }
};

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

/// Whether every row of `part` starts as the same row of `full` does.
bool is_prefix(const HostTensor& part, const HostTensor& full) {
  if (part.dtype != full.dtype || part.shape.size() != full.shape.size()) return false;
  const uint64_t kept = row_bytes(part.dtype, part.shape.back()),
                 all = row_bytes(full.dtype, full.shape.back());
  const auto rows = static_cast<uint64_t>(n_rows(part.shape));
  if (kept > all || rows > static_cast<uint64_t>(n_rows(full.shape)) || part.bytes.size() != rows * kept)
    return false;
  for (uint64_t row = 0; row < rows; ++row)
    if (!std::equal(part.bytes.data() + row * kept, part.bytes.data() + (row + 1) * kept,
                    full.bytes.data() + row * all))
      return false;
  return true;
}

/// Read back, a level is the slice of the full file, and the full file is the source in the exported type.
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
    CHECK(sub.spec().heads_per_group == expected.heads_per_group);
    CHECK(sub.spec().rope_theta == expected.rope_theta);
    CHECK(sub.spec().norm_eps == expected.norm_eps);
    CHECK(rope_frequency_divisors(sub.spec()) == rope_frequency_divisors(expected));
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

/// Whether a tensor's bytes in two files of one architecture are prefix and whole.
void check_file_prefixes(const fs::path& level, const fs::path& full) {
  const GgufFile narrow = GgufFile::open(level), wide = GgufFile::open(full);
  REQUIRE(narrow.tensors().size() == wide.tensors().size());
  for (const TensorInfo& tensor : narrow.tensors()) {
    CAPTURE(tensor.name);
    CHECK(is_prefix(narrow.tensor(tensor.name), wide.tensor(tensor.name)));
  }
}

ModelSpec wide_spec(const std::string& family, bool tied = false) {
  return test::make_tiny_spec(family, {.d_model = 64,
                                       .head_dim = 32,
                                       .n_kv_heads = 3,
                                       .heads_per_group = 1,
                                       .d_ff = 128,
                                       .n_vocab = 40,
                                       .tied = tied});
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
  CHECK(test::values_of(factors) == rope_frequency_divisors(spec));

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
  spec.rope.kind = RopeScaling::Kind::kLinear;
  spec.rope.factor = 4;
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
      // Every matrix of the layers in the model's file has an entry with as many columns, and nothing else
      // has.
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

TEST_CASE("export: a failure leaves nothing behind") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const Checkpoint broken = model.open().transformed([](size_t index, HostTensor tensor) {
    if (index == 9) fail("unreadable");
    return tensor;
  });
  const auto export_it = [&] {
    export_model(broken, nullptr, identity_permutation(spec), uniform_plan(spec, 8), {}, Json::object(),
                 target);
  };
  CHECK(test::message_of(export_it) == spec.tensors[9].name + ": unreadable");
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: an interrupt leaves nothing behind") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const Checkpoint interrupted = model.open().transformed([](size_t index, HostTensor tensor) {
    if (index == 9) throw Interrupted();
    return tensor;
  });
  CHECK_THROWS_AS(export_model(interrupted, nullptr, identity_permutation(spec), uniform_plan(spec, 8), {},
                               Json::object(), target),
                  Interrupted);
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: in a process of its own, a signal amid the tensors" * doctest::skip()) {
  install_interrupt_handler();
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const Checkpoint interrupted = model.open().transformed([](size_t index, HostTensor tensor) {
    if (index == 9) std::raise(SIGINT), std::raise(SIGINT);  // timeout(1) sends its signal twice
    return tensor;
  });
  CHECK_THROWS_AS(export_model(interrupted, nullptr, identity_permutation(spec), uniform_plan(spec, 8), {},
                               Json::object(), target),
                  Interrupted);
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: so does a signal, wherever it comes") {
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  CHECK(std::system((self + " --no-skip -tc='export: in a process of its own*' >/dev/null 2>&1").c_str()) ==
        0);
}

TEST_CASE("export: values that the type cannot hold are refused by name, and nothing is left behind") {
  const ModelSpec spec = wide_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const auto index = static_cast<size_t>(spec.find(Role::kDown, 1));
  const Checkpoint infinite = model.open().transformed([&](size_t i, const HostTensor& tensor) {
    auto values = test::values_of(tensor);
    if (i == index) values[7] = std::numeric_limits<float>::infinity();
    return test::tensor_of(values, tensor.shape);
  });
  const auto export_it = [&] {
    export_model(infinite, nullptr, identity_permutation(spec), uniform_plan(spec, 32, {0.8}),
                 {.types = {DType::kQ8_0}, .levels = {}}, Json::object(), target);
  };
  CHECK(test::message_of(export_it).starts_with(spec.tensors[index].name + ": "));
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: q8_0 is refused before anything is written where rows are not whole blocks") {
  const ModelSpec spec = wide_spec("llama");
  const auto refusal = [](const ModelSpec& of, const ElasticPlan& plan) {
    const Model model(of);
    const fs::path target = model.make("artifact");
    const auto export_it = [&] { model.to(target, plan, {.types = {DType::kQ8_0}, .levels = {}}); };
    const auto result = std::pair(test::message_of(export_it), test::hint_of(export_it));
    CHECK(fs::is_empty(target));
    return result;
  };
  ElasticPlan plan = uneven_plan(spec, 8);
  plan.levels[0].widths[spec.mlp_space(0)] = 40;
  plan.levels[0] = make_level(spec, 0.5, plan.levels[0].widths);
  plan.levels[1] = make_level(spec, 0.75, full_widths(spec));
  auto [message, hint] = refusal(spec, plan);
  CHECK(message ==
        "level-050: blk.0.ffn_down.weight: rows of 40 elements are not whole blocks of 32, as q8_0 needs");
  CHECK(hint ==
        "the nearest widths are 32 and 64; plan with --grid 32, or export with --type f16, which takes any "
        "width");

  const ModelSpec odd = test::make_tiny_spec("llama", {.d_ff = 172});
  std::tie(message, hint) = refusal(odd, uniform_plan(odd, 32, {0.8}));
  CHECK(message ==
        "level-100: blk.0.ffn_down.weight: rows of 172 elements are not whole blocks of 32, as q8_0 needs");
  CHECK(hint == "export with --type f16, which takes any width");

  const ModelSpec heads =
      test::make_tiny_spec("llama", {.head_dim = 8, .n_kv_heads = 4, .heads_per_group = 2});
  std::tie(message, hint) = refusal(heads, uneven_plan(heads, 32));
  CHECK(message ==
        "level-050: blk.0.attn_output.weight: rows of 16 elements are not whole blocks of 32, as q8_0 needs");
  CHECK(hint == "the nearest width is 2; export with --type f16, which takes any width");
}

TEST_CASE("export: foreign plans and permutations are refused") {
  const ModelSpec spec = test::make_tiny_spec("llama"), other = test::make_tiny_spec("llama", {.d_ff = 80});
  const Model model(spec);
  const fs::path target = model.make("artifact");
  CHECK(test::message_of([&] { model.to(target, uniform_plan(other, 8), {}); }) ==
        "the plan belongs to another model");
  const auto foreign = [&] {
    export_model(model.open(), nullptr, identity_permutation(other), uniform_plan(spec, 8), {},
                 Json::object(), target);
  };
  CHECK(test::message_of(foreign).find("expected 64 units, got 80") != std::string::npos);
  const ModelSpec untied = test::make_tiny_spec("qwen3", {.head_dim = 16});
  const Model qwen(untied);
  CHECK(test::message_of([&] {
          qwen.to(target, uneven_plan(untied, 8), {});
        }).starts_with("level-075: stock llama.cpp runs qwen3"));
  CHECK(fs::is_empty(target));
}

namespace {

/// Three layers whose rows are whole blocks of 256 at every level of uneven_plan(spec, 256).
ModelSpec blocks_spec() {
  return test::make_tiny_spec(
      "llama",
      {.n_layers = 3, .d_model = 256, .head_dim = 64, .n_kv_heads = 2, .heads_per_group = 4, .d_ff = 512});
}

}  // namespace

TEST_CASE("export: in every type, and in mixtures, levels are byte prefixes of the full file's rows") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  for (const exporter::WeightType& type : exporter::all_weight_types()) {
    CAPTURE(type.name());
    const fs::path target = model.make(std::string(type.name()));
    const auto files = model.to(target, uneven_plan(spec, 256), {.types = {type}, .levels = {}});
    for (const auto& file : files) check_file_prefixes(target / file.name, target / "full.gguf");
    const GgufFile full = GgufFile::open(target / "full.gguf");
    CHECK(full.metadata().require_integer("general.file_type") == type.file_type());
    CHECK(full.metadata().contains("general.quantization_version") != type.is_float());
    double bits = 0;
    for (const TensorInfo& tensor : full.tensors())
      bits += 8 * static_cast<double>(n_bytes(tensor.dtype, tensor.shape));
    CHECK(files[0].bits_per_weight == doctest::Approx(bits / static_cast<double>(files[0].n_params)));
  }
}

TEST_CASE("export: mixtures give the output, and attn_v and ffn_down of some layers, more bits") {
  ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 16});
  const exporter::WeightType mixture = exporter::weight_type_named("q4_k_m");
  const auto type = [&](Role role, int64_t layer, bool fused = false) {
    return mixture.of(spec.tensors[static_cast<size_t>(spec.find(role, layer))], spec, fused);
  };
  std::vector<int64_t> more;
  for (int64_t layer = 0; layer < 16; ++layer) {
    if (type(Role::kDown, layer) == DType::kQ6_K) more.push_back(layer);
    CHECK((type(Role::kValue, layer) == type(Role::kDown, layer)));
    CHECK((type(Role::kValue, layer, true) == DType::kQ4_K));
    for (const Role role : {Role::kQuery, Role::kKey, Role::kAttnOut, Role::kGate, Role::kUp})
      CHECK((type(role, layer) == DType::kQ4_K));
    CHECK((type(Role::kAttnNorm, layer) == DType::kF32));
  }
  CHECK(more == std::vector<int64_t>{0, 1, 4, 7, 10, 13, 14, 15});
  CHECK((type(Role::kOutput, -1) == DType::kQ6_K));
  CHECK((type(Role::kTokenEmbedding, -1) == DType::kQ4_K));
  spec = test::make_tiny_spec("llama", {.tied = true});
  CHECK((type(Role::kTokenEmbedding, -1) == DType::kQ6_K));
}

TEST_CASE("export: several types are written in one pass, each as the artifact that it would be alone") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  const fs::path both = model.make("both");
  const auto types = exporter::weight_types_named("q8_0,q4_k_m");
  const auto files = model.to(both, uneven_plan(spec, 256), {.types = types, .levels = {}});
  CHECK(files.size() == 6);
  const Json manifest = Json::parse(read_text(both / "manifest.json"));
  REQUIRE(manifest.at("folders").size() == 2);
  for (size_t i = 0; i < types.size(); ++i) {
    const std::string name(types[i].name());
    CAPTURE(name);
    const fs::path alone = model.make("alone " + name);
    model.to(alone, uneven_plan(spec, 256), {.types = {types[i]}, .levels = {}});
    CHECK(manifest.at("folders")[i].at("name") == name);
    CHECK(manifest.at("folders")[i].at("manifest_sha256") == sha256_file(both / name / "manifest.json"));
    for (const auto& entry : fs::directory_iterator(alone))
      CHECK(sha256_file(entry.path()) == sha256_file(both / name / entry.path().filename()));
  }
  CHECK(test::message_of([] { exporter::weight_types_named("q8_0,q8_0"); }) ==
        "type 'q8_0' stands there twice");
  CHECK(test::message_of([] { exporter::weight_types_named("q8_0,q9"); }) == "unknown type 'q9'");
}

TEST_CASE("export: memory that is bounded gives the same bytes, and too little is refused") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  const auto digest_with = [&](const std::string& name, int64_t max_ram) {
    const fs::path target = model.make(name);
    const auto files =
        model.to(target, uneven_plan(spec, 256), {.types = {DType::kQ4_K}, .levels = {}, .max_ram = max_ram});
    return files.back().sha256;
  };
  CHECK(digest_with("bounded", int64_t{1} << 30) == digest_with("unbounded", 0));
  CHECK(test::message_of([&] { digest_with("refused", 1 << 20); }).starts_with("max-ram: "));
  CHECK(fs::is_empty(model.directory / "refused"));
}

TEST_CASE("export: K-quants are refused by name where 256 does not divide a row, with what would do") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const auto export_it = [&] {
    model.to(target, uneven_plan(spec, 32), {.types = exporter::weight_types_named("q4_k_m"), .levels = {}});
  };
  CHECK(test::message_of(export_it) ==
        "level-075: blk.0.ffn_down.weight: rows of 480 elements are not whole blocks of 256, as q4_k needs");
  CHECK(test::hint_of(export_it) ==
        "the nearest widths are 256 and 512; plan with --grid 256, or export with --type q8_0, q5_1, q5_0, "
        "q4_1 "
        "or q4_0, whose blocks have 32");
  CHECK(fs::is_empty(target));
}

}  // namespace elastify
