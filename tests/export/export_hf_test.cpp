#include "export/export_hf.h"

#include <doctest/doctest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using exporter::export_hf;
using exporter::HfExportOptions;
using exporter::HfLevel;
using Json = nlohmann::ordered_json;

constexpr double kHalf = 0.5;

/// Level 0.5: these units of every layer.
ElasticPlan plan_of(const ModelSpec& spec, int64_t groups, int64_t d_ff) {
  Widths widths;
  for (const AxisSpace& space : spec.spaces) widths.push_back(space.kind == SpaceKind::kMlp ? d_ff : groups);
  ElasticPlan plan;
  plan.spec_hash = spec_hash(spec);
  plan.method = "uniform";
  plan.grid = 8;
  plan.levels = {make_level(spec, kHalf, widths), make_level(spec, 1, full_widths(spec))};
  return plan;
}

HostTensor filled(const Shape& shape, float value) {
  HostTensor tensor = HostTensor::allocate(DType::kF32, shape);
  for (size_t i = 0; i < tensor.bytes.size(); i += sizeof(float))
    std::memcpy(tensor.writable().data() + i, &value, sizeof(float));
  return tensor;
}

struct Has {
  bool o_bias = false, down_bias = false, weights = false, adapters = false;
};

/// Repairs of o and down with constant values; biases only in layer 1.
LevelRepairs repairs_of(const ModelSpec& spec, const Level& level, Has has) {
  LevelRepairs repairs = empty_repairs(spec, level.nominal, Compensation::kBakedBias);
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    const bool is_down = tensor->role == Role::kDown;
    if (!is_down && tensor->role != Role::kAttnOut) continue;
    TensorRepair& repair = repairs.at(*tensor);
    const Shape matrix = shape_at(*tensor, level.widths);
    if ((is_down ? has.down_bias : has.o_bias) && tensor->layer == 1)
      repair.bias = filled({matrix[0]}, 0.25F);
    if (has.weights) repair.weight = filled(matrix, is_down ? 2.0F : 3.0F);
    if (has.adapters) {
      repair.a = filled({2, matrix[1]}, 0.5F);
      repair.b = filled({matrix[0], 2}, 0.125F);
    }
  }
  return repairs;
}

struct Model {
  test::TemporaryDirectory directory;
  fs::path path = directory / "model";
  explicit Model(const ModelSpec& spec, DType dtype = DType::kF32) {
    test::write_tiny_hf_model(spec, path, 11, dtype);
  }
  fs::path at(const std::string& name) const { return directory / name; }
  std::vector<HfLevel> to(const std::string& name, const ElasticPlan& plan,
                          const HfExportOptions& options = {},
                          const std::vector<LevelRepairs>& repairs = {}) const {
    fs::create_directories(at(name));
    const Checkpoint source = Checkpoint::open(path);
    return export_hf(source, identity_permutation(source.spec()), plan, options, repairs, Json::object(),
                     at(name));
  }
  Json config(const std::string& name) const { return Json::parse(read_text(at(name) / "config.json")); }
};

/// Checks that every tensor of the level is the leading part of the source's, in `type`.
void check_prefixes(const Checkpoint& source, const Level& level, const fs::path& directory, DType type) {
  const Checkpoint sub = Checkpoint::open(directory);
  CHECK(sub.spec().tensors.size() == source.spec().tensors.size());
  for (size_t i = 0; i < source.spec().tensors.size(); ++i) {
    const TensorSpec& tensor = source.spec().tensors[i];
    CAPTURE(tensor.name);
    const int64_t at = sub.spec().find(tensor.name);
    REQUIRE(at >= 0);
    CHECK(test::same_bytes(slice(source.load(i, type), tensor, level.widths),
                           sub.load(static_cast<size_t>(at))));
  }
}

TEST_SUITE("export") {
  TEST_CASE(
      "export_hf: levels of every family are prefixes that open as models of their own, in every float "
      "type") {
    for (const auto& variant : test::tiny_variants()) {
      if (variant.spec.n_kv_heads() < 2) continue;
      for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
        CAPTURE(variant.name);
        CAPTURE(info(type).name);
        const Model model(variant.spec);
        const ElasticPlan plan = plan_of(variant.spec, variant.spec.n_kv_heads() / 2, 24);
        const auto levels = model.to("out", plan, {.type = type, .levels = {}});
        REQUIRE(levels.size() == 2);
        CHECK(levels[0].name == "full");
        CHECK(levels[1].name == "level-050");
        const Checkpoint source = Checkpoint::open(model.path);
        check_prefixes(source, plan.levels[1], model.at("out/full"), type);
        check_prefixes(source, plan.levels[0], model.at("out/level-050"), type);
        const ModelSpec narrow = Checkpoint::open(model.at("out/level-050")).spec();
        CHECK(narrow.head_dim == variant.spec.head_dim);
        CHECK(n_params(narrow, full_widths(narrow)) == levels[1].n_params);
      }
    }
  }

  TEST_CASE("export_hf: config.json keeps the source's keys and states the level's widths and type") {
    const ModelSpec spec = test::make_tiny_spec("qwen2");
    const Model model(spec, DType::kBF16);
    Json source = Json::parse(read_text(model.path / "config.json"));
    source["eos_token_id"] = {7, 9};
    source["rope_theta"] = 123456.0;
    source.erase("head_dim");
    write_text(model.path / "config.json", source.dump());
    model.to("out", plan_of(spec, 1, 24));
    for (const char* name : {"full", "level-050"}) {
      CAPTURE(name);
      const Json config = model.config(std::string("out/") + name);
      CHECK(config.at("eos_token_id") == Json({7, 9}));
      CHECK(config.at("rope_theta") == 123456.0);
      CHECK(config.at("head_dim") == spec.head_dim);
      CHECK(config.at("torch_dtype") == "bfloat16");
      const bool full = name[0] == 'f';
      CHECK(config.at("num_key_value_heads") == (full ? 2 : 1));
      CHECK(config.at("num_attention_heads") == (full ? 4 : 2));
      CHECK(config.at("intermediate_size") == (full ? 64 : 24));
    }
    model.to("wide", plan_of(spec, 1, 24), {.type = DType::kF32, .levels = {}});
    CHECK(model.config("wide/full").at("torch_dtype") == "float32");
  }

  TEST_CASE(
      "export_hf: a llama whose heads do not divide its width is written as mistral, unless it has biases") {
    test::TinyOptions options;
    options.n_kv_heads = 4;
    options.heads_per_group = 1;
    const ModelSpec spec = test::make_tiny_spec("llama", options);
    const Model model(spec);
    const ElasticPlan plan = plan_of(spec, 3, 24);
    const auto levels = model.to("out", plan);
    CHECK(levels[0].architecture == "LlamaForCausalLM");
    CHECK(levels[1].architecture == "MistralForCausalLM");
    const Json config = model.config("out/level-050");
    CHECK(config.at("model_type") == "mistral");
    CHECK(config.at("sliding_window").is_null());
    CHECK(config.at("max_position_embeddings") == spec.max_seq);
    check_prefixes(Checkpoint::open(model.path), plan.levels[0], model.at("out/level-050"), DType::kF32);
    const LevelRepairs biases = repairs_of(spec, plan.levels[0], {.o_bias = true, .down_bias = true});
    CHECK(test::message_of([&] {
            model.to("b", plan, {}, {biases});
          }).find("level-050: 3 heads beside a hidden_size of 32, which is no multiple") !=
          std::string::npos);
  }

  TEST_CASE("export_hf: large weights are sharded with an index, and slabs change nothing") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const Model model(spec);
    const ElasticPlan plan = plan_of(spec, 1, 24);
    const auto levels = model.to("out", plan, {.type = {}, .levels = {}, .shard_bytes = 20000});
    CHECK(fs::exists(model.at("out/full/model.safetensors.index.json")));
    CHECK_FALSE(fs::exists(model.at("out/full/model.safetensors")));
    const Checkpoint source = Checkpoint::open(model.path);
    check_prefixes(source, plan.levels[1], model.at("out/full"), DType::kF32);
    check_prefixes(source, plan.levels[0], model.at("out/level-050"), DType::kF32);
    for (const HfLevel& level : levels)
      for (const WrittenFile& file : level.files) {
        const fs::path path = model.at("out") / level.name / file.name;
        CHECK(fs::file_size(path) == file.bytes);
        CHECK(sha256_file(path) == file.sha256);
      }
  }

  TEST_CASE("export_hf: biases of a level switch on all that config.json has, as zeros") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const Model model(spec);
    const ElasticPlan plan = plan_of(spec, 1, 24);
    const LevelRepairs repairs =
        repairs_of(spec, plan.levels[0], {.o_bias = true, .down_bias = true, .weights = true});
    const auto levels = model.to("out", plan, {}, {repairs});
    CHECK_FALSE(model.config("out/full").value("attention_bias", false));
    CHECK(model.config("out/level-050").at("attention_bias") == true);
    CHECK(model.config("out/level-050").at("mlp_bias") == true);
    const Checkpoint sub = Checkpoint::open(model.at("out/level-050"));
    CHECK(levels[1].n_params == n_params(sub.spec(), full_widths(sub.spec())));
    const auto value = [&](Role role, int64_t layer) {
      const HostTensor tensor = sub.load(static_cast<size_t>(sub.spec().find(role, layer)));
      float first = 0, last = 0;
      std::memcpy(&first, tensor.bytes.data(), sizeof(float));
      std::memcpy(&last, tensor.bytes.data() + tensor.bytes.size() - sizeof(float), sizeof(float));
      CHECK(first == last);
      return first;
    };
    for (const Role role : {Role::kAttnOutBias, Role::kDownBias}) {
      CHECK(value(role, 0) == 0.0F);
      CHECK(value(role, 1) == 0.25F);
    }
    for (const Role role :
         {Role::kQueryBias, Role::kKeyBias, Role::kValueBias, Role::kGateBias, Role::kUpBias})
      CHECK(value(role, 1) == 0.0F);
    CHECK(value(Role::kAttnOut, 0) == 3.0F);
    CHECK(value(Role::kDown, 1) == 2.0F);
    const exporter::HeldRepairs held = exporter::held_in_directory(model.at("out/level-050"));
    CHECK(name_of(held.parts) == "baked+bias");
    CHECK(held.own_tensors.empty());
    CHECK(exporter::held_in_directory(model.at("out/full")).parts == Compensation::kNone);
  }

  TEST_CASE(
      "export_hf: weights, biases and norms of every role are the level's own, and named where unusual") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const Model model(spec);
    const ElasticPlan plan = plan_of(spec, 1, 24);
    LevelRepairs repairs = empty_repairs(spec, kHalf, parts_named("baked+bias+norm"));
    std::vector<std::string> named;
    for (const TensorSpec* tensor : repairable_tensors(spec, plan.levels[0].widths)) {
      if (tensor->layer != 1) continue;
      const Shape shape = shape_at(*tensor, plan.levels[0].widths);
      const auto value = static_cast<float>(tensor->role);
      repairs.at(*tensor).weight = filled(shape, value);
      if (is_layer_matrix(tensor->role)) repairs.at(*tensor).bias = filled({shape[0]}, value / 2);
    }
    model.to("out", plan, {}, {repairs});
    const Checkpoint sub = Checkpoint::open(model.at("out/level-050"));
    const Checkpoint source = Checkpoint::open(model.path);
    size_t n_own = 0;
    for (size_t i = 0; i < sub.spec().tensors.size(); ++i) {
      const TensorSpec& tensor = sub.spec().tensors[i];
      CAPTURE(tensor.name);
      const std::optional<Role> matrix = matrix_of(tensor.role);
      const TensorRepair* repair = repairs.find(tensor.layer, matrix.value_or(tensor.role));
      if (repair == nullptr && matrix) {
        CHECK(test::same_bytes(sub.load(i), filled(tensor.shape, 0)));
      } else if (repair == nullptr) {
        const auto at = static_cast<size_t>(spec.find(tensor.name));
        CHECK(test::same_bytes(sub.load(i), slice(source.load(at), spec.tensors[at], plan.levels[0].widths)));
      } else {
        CHECK(test::same_bytes(sub.load(i), matrix ? *repair->bias : *repair->weight));
        const bool usual =
            matrix.value_or(tensor.role) == Role::kAttnOut || matrix.value_or(tensor.role) == Role::kDown;
        if (!usual) named.push_back(tensor.name);
        ++n_own;
      }
    }
    CHECK(n_own == 16);
    const exporter::HeldRepairs held = exporter::held_in_directory(model.at("out/level-050"));
    CHECK(held.own_tensors == named);
    CHECK(name_of(held.parts) == "baked+bias+norm");
  }

  TEST_CASE("export_hf: biases are refused where the family has no key for them") {
    for (const char* family : {"mistral", "qwen2", "qwen3"}) {
      CAPTURE(family);
      const ModelSpec spec = test::make_tiny_spec(family);
      const Model model(spec);
      const ElasticPlan plan = plan_of(spec, 1, 24);
      const LevelRepairs repairs = repairs_of(spec, plan.levels[0], {.o_bias = true, .down_bias = true});
      const std::string refused = test::message_of([&] { model.to("out", plan, {}, {repairs}); });
      CHECK(refused.find("level-050: compensation 'baked+bias': config.json of ") == 0);
      CHECK(refused.find("cannot say: ") != std::string::npos);
      CHECK(fs::is_empty(model.at("out")));
    }
  }

  TEST_CASE("export_hf: an adapter gets a PEFT directory beside its level, which reads back as it was") {
    const ModelSpec spec = test::make_tiny_spec("qwen3");
    const Model model(spec);
    const ElasticPlan plan = plan_of(spec, 1, 24);
    const LevelRepairs repairs = repairs_of(spec, plan.levels[0], {.adapters = true});
    const auto levels = model.to("out", plan, {.type = DType::kF16, .levels = {}}, {repairs});
    REQUIRE(levels[1].adapter.has_value());
    CHECK(levels[1].adapter->name == "lora-050");
    CHECK(model.config("out/level-050").at("num_attention_heads") == 2);
    const Json config = Json::parse(read_text(model.at("out/lora-050/adapter_config.json")));
    CHECK(config.at("base_model_name_or_path") == "level-050");
    const ModelSpec narrow = Checkpoint::open(model.at("out/level-050")).spec();
    const LevelRepairs read =
        load_adapters(model.at("out/lora-050"), narrow, make_level(narrow, kHalf, full_widths(narrow)));
    for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
      const auto same = [&](Role role) {
        const TensorRepair *before = repairs.find(layer, role), *after = read.find(layer, role);
        return test::same_bytes(*before->a, *after->a) && test::same_bytes(*before->b, *after->b);
      };
      CHECK(same(Role::kDown));
      CHECK(same(Role::kAttnOut));
    }
  }

  TEST_CASE("export_hf: companions come along, tokenizer.gguf does not") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const Model model(spec);
    CHECK_FALSE(model.to("without", plan_of(spec, 1, 24))[0].has_tokenizer);
    for (const char* name :
         {"tokenizer.json", "generation_config.json", "LICENSE", "tokenizer.gguf", "notes.txt"})
      write_text(model.path / name, name);
    const auto levels = model.to("with", plan_of(spec, 1, 24));
    CHECK(levels[1].has_tokenizer);
    for (const char* name : {"tokenizer.json", "generation_config.json", "LICENSE"})
      CHECK((read_text(model.at("with/level-050") / name) == name));
    for (const char* name : {"tokenizer.gguf", "notes.txt"})
      CHECK_FALSE(fs::exists(model.at("with/level-050") / name));
  }

  TEST_CASE("export_hf: levels that no config.json can say are all named, and nothing is written") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const Model model(spec);
    ElasticPlan plan = plan_of(spec, 1, 24);
    Widths uneven = plan.levels[0].widths, more = uneven;
    uneven[spec.mlp_space(0)] = 16;
    more[spec.attention_space(1)] = 2;
    plan.levels = {make_level(spec, 0.3, uneven), plan.levels[0], make_level(spec, 0.7, more),
                   plan.levels[1]};
    const std::string refused = test::message_of([&] { model.to("out", plan); });
    CHECK(refused.find("level-070: widths differ by layer") != std::string::npos);
    CHECK(refused.find("level-030: widths differ by layer") != std::string::npos);
    CHECK(refused.find("level-050") == std::string::npos);
    CHECK(fs::is_empty(model.at("out")));
    CHECK(model.to("some", plan, {.type = {}, .levels = {kHalf}}).size() == 2);
  }

  TEST_CASE(
      "export_hf: quantised types and unknown levels are refused, a failure leaves the directory empty") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const Model model(spec);
    const ElasticPlan plan = plan_of(spec, 1, 24);
    CHECK(test::message_of([&] {
            model.to("q", plan, {.type = DType::kQ8_0, .levels = {}});
          }).find("type: q8_0") == 0);
    CHECK(test::message_of([&] { model.to("l", plan, {.type = {}, .levels = {0.4}}); }).find("0.4") !=
          std::string::npos);
    fs::create_directories(model.at("broken"));
    const Checkpoint bad =
        Checkpoint::open(model.path).transformed([](size_t i, HostTensor tensor) -> HostTensor {
          if (i == 5) throw Error("unreadable");
          return tensor;
        });
    CHECK(test::message_of([&] {
            export_hf(bad, identity_permutation(spec), plan, {}, {}, Json::object(), model.at("broken"));
          }).find("unreadable") != std::string::npos);
    CHECK(fs::is_empty(model.at("broken")));
  }

  TEST_CASE("export_hf: the same input gives the same bytes") {
    const ModelSpec spec = test::make_tiny_spec("mistral");
    const Model model(spec);
    for (const char* name : {"a", "b"})
      model.to(name, plan_of(spec, 1, 24), {.type = DType::kBF16, .levels = {}});
    CHECK((read_text(model.at("a/manifest.json")) == read_text(model.at("b/manifest.json"))));
    CHECK((read_text(model.at("a/level-050/model.safetensors")) ==
           read_text(model.at("b/level-050/model.safetensors"))));
  }
}

}  // namespace
}  // namespace elastify
