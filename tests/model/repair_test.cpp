#include "model/repair.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "io/safetensors.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

namespace {

using Json = nlohmann::ordered_json;

Level half_level(const ModelSpec& spec) {
  Widths widths;
  for (const AxisSpace& space : spec.spaces) widths.push_back(space.n_units / 2);
  return make_level(spec, 0.5, widths);
}

HostTensor numbers(Shape shape, float first) {
  std::vector<float> values(static_cast<size_t>(n_elements(shape)));
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + 0.25F * static_cast<float>(i);
  return tensor_of(values, std::move(shape));
}

/// Repairs of o and down of both layers: ranks 2, 3, none and 5; some have biases and own weights.
LevelRepairs mixed_repairs(const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs = empty_repairs(spec, level.nominal, Compensation::kAdapterBias);
  const int64_t ranks[] = {2, 3, 0, 5};
  size_t n = 0;
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    if (tensor->role != Role::kAttnOut && tensor->role != Role::kDown) continue;
    TensorRepair& repair = repairs.at(*tensor);
    const Shape shape = shape_at(*tensor, level.widths);
    const int64_t rank = ranks[n++];
    if (rank > 0) {
      repair.a = numbers({rank, shape[1]}, 1);
      repair.b = numbers({shape[0], rank}, -3);
    } else {
      repair.weight = numbers(shape, 7);
    }
    if (n != 2) repair.bias = numbers({shape[0]}, 0.5F);
  }
  return repairs;
}

/// All repairs that a level can have: adapters, weights and biases of all seven matrices, and all norms.
LevelRepairs all_repairs(const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs = empty_repairs(spec, level.nominal, parts_named("adapter+baked+bias+norm"));
  int64_t rank = 1;
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    TensorRepair& repair = repairs.at(*tensor);
    const Shape shape = shape_at(*tensor, level.widths);
    repair.weight = numbers(shape, static_cast<float>(rank));
    if (!is_layer_matrix(tensor->role)) continue;
    repair.a = numbers({rank, shape[1]}, 2);
    repair.b = numbers({shape[0], rank}, -5);
    repair.bias = numbers({shape[0]}, 0.25F);
    ++rank;
  }
  repairs.output_norm = numbers({spec.d_model}, 9);
  return repairs;
}

bool same(const std::optional<HostTensor>& a, const std::optional<HostTensor>& b) {
  return a.has_value() == b.has_value() && (!a || same_bytes(*a, *b));
}

/// \returns the number of tensors that have repairs
size_t check_same(const LevelRepairs& expected, const LevelRepairs& found, const ModelSpec& spec,
                  const Widths& widths) {
  size_t n = 0;
  for (const TensorSpec* tensor : repairable_tensors(spec, widths)) {
    CAPTURE(tensor->name);
    const TensorRepair *a = expected.find(*tensor), *b = found.find(*tensor);
    REQUIRE((a == nullptr) == (b == nullptr));
    if (a == nullptr) continue;
    CHECK(same(a->weight, b->weight));
    CHECK(same(a->a, b->a));
    CHECK(same(a->b, b->b));
    CHECK(same(a->bias, b->bias));
    ++n;
  }
  CHECK(same(expected.output_norm, found.output_norm));
  return n;
}

void change_json(const fs::path& file, const std::function<void(Json&)>& change) {
  Json json = Json::parse(read_text(file));
  change(json);
  write_text(file, json.dump());
}

/// Rewrites the file with changed tensors.
void change_tensors(const fs::path& file,
                    const std::function<void(std::vector<std::pair<std::string, HostTensor>>&)>& change) {
  std::vector<std::pair<std::string, HostTensor>> tensors;
  {
    const SafetensorsFile opened = SafetensorsFile::open(file);
    for (const TensorInfo& each : opened.tensors())
      tensors.emplace_back(each.name, tensor_of(values_of(opened.tensor(each.name)), each.shape));
  }
  change(tensors);
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) infos.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsWriter writer(file, infos, {});
  for (const auto& [name, tensor] : tensors) writer.write(tensor.bytes);
  writer.finish();
}

}  // namespace

TEST_CASE("repairs: mixed ranks, biases and weights of their own come back as they were written") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Level level = half_level(spec);
  const LevelRepairs repairs = mixed_repairs(spec, level);
  const TemporaryDirectory directory;
  const fs::path path = repairs_directory(directory.path(), 0.5);
  CHECK(path.filename() == "level-050");
  save_repairs(repairs, spec, level, path);
  const auto found = find_repairs(directory.path(), spec, level);
  REQUIRE(found);
  CHECK(name_of(found->compensation) == "adapter+bias");
  CHECK(name_of(found->parts()) == "adapter+baked+bias");
  CHECK(found->nominal == 0.5);
  CHECK(check_same(repairs, *found, spec, level.widths) == 4);
  CHECK_FALSE(find_repairs(directory.path(), spec, make_level(spec, 1, full_widths(spec))));
}

TEST_CASE("repairs: every matrix and norm of every family comes back, at widths that differ by layer") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    Widths widths = full_widths(spec);
    widths[spec.mlp_space(0)] = 24;
    widths[spec.attention_space(1)] = 1;
    const Level level = make_level(spec, 0.7, widths);
    const LevelRepairs repairs = all_repairs(spec, level);
    const TemporaryDirectory directory;
    save_repairs(repairs, spec, level, directory / "r");
    const LevelRepairs found = load_repairs(directory / "r", spec, level);
    CHECK(check_same(repairs, found, spec, widths) == 9 * static_cast<size_t>(spec.n_layers));
    CHECK(name_of(found.compensation) == "adapter+baked+bias+norm");
    CHECK(found.compensation == found.parts());
    // The adapters can also be saved alone.
    save_adapters(repairs, spec, level, "base", directory / "a");
    CHECK(name_of(load_adapters(directory / "a", spec, level).parts()) == "adapter");
    CHECK((read_text(directory / "a/adapter_model.safetensors") ==
           read_text(directory / "r/adapter_model.safetensors")));
  }
}

TEST_CASE("repairs: halves that a level leaves out have none, and none is taken for them") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 4});
  const Level level = make_level(spec, 0.5, shallow_widths(spec));
  const LevelRepairs repairs = all_repairs(spec, level);
  CHECK(repairable_tensors(spec, level.widths).size() == 9 + 4 + 0 + 9);
  const TemporaryDirectory directory;
  save_repairs(repairs, spec, level, directory / "r");
  CHECK(check_same(repairs, load_repairs(directory / "r", spec, level), spec, level.widths) == 22);
  LevelRepairs wrong = repairs;
  wrong.layers[1][Role::kQuery].bias = numbers({32}, 0);
  CHECK(message_of([&] { check(wrong, spec, level); }) ==
        "model.layers.1.self_attn.q_proj.weight: the level leaves out this tensor, but has a repair for it");
  wrong = repairs;
  wrong.layers[0][Role::kAttnNorm].bias = numbers({32}, 0);
  CHECK(message_of([&] {
          check(wrong, spec, level);
        }).find("model.layers.0.input_layernorm.weight: a norm has neither an adapter nor a bias") == 0);
  wrong = repairs;
  wrong.layers[0][Role::kTokenEmbedding].weight = numbers({32}, 0);
  CHECK(message_of([&] {
          check(wrong, spec, level);
        }).find("layers.0: only matrices and norms can be repaired") == 0);
  wrong = repairs;
  wrong.layers.pop_back();
  CHECK(message_of([&] { check(wrong, spec, level); }) == "repairs: expected 4 layers, got 3");
}

TEST_CASE("repairs: adapters lie in PEFT's layout, the odd ranks in its patterns") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Level level = half_level(spec);
  const TemporaryDirectory directory;
  save_repairs(mixed_repairs(spec, level), spec, level, directory / "r");
  const Json config = Json::parse(read_text(directory / "r/adapter_config.json"));
  CHECK(config.at("peft_type") == "LORA");
  CHECK(config.at("r") == 5);
  CHECK(config.at("lora_alpha") == 5);
  CHECK(config.at("rank_pattern") ==
        Json{{"model.layers.0.self_attn.o_proj", 2}, {"model.layers.0.mlp.down_proj", 3}});
  CHECK(config.at("alpha_pattern") == config.at("rank_pattern"));
  CHECK(config.at("target_modules") == Json{"model.layers.0.self_attn.o_proj", "down_proj"});
  const SafetensorsFile file = SafetensorsFile::open(directory / "r/adapter_model.safetensors");
  CHECK(file.contains("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"));
  CHECK(file.tensor("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight").shape == Shape{5, 32});
  CHECK(file.tensor("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight").shape == Shape{32, 5});
}

TEST_CASE("repairs: an adapter's alpha over its rank is multiplied into b") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Level level = half_level(spec);
  const TemporaryDirectory directory;
  const LevelRepairs repairs = mixed_repairs(spec, level);
  save_repairs(repairs, spec, level, directory / "r");
  change_json(directory / "r/adapter_config.json", [](Json& json) {
    json["lora_alpha"] = 10;
    json["alpha_pattern"] = {{"model.layers.0.self_attn.o_proj", 1}};
  });
  const LevelRepairs found = load_repairs(directory / "r", spec, level);
  const auto ratio = [&](int64_t layer, Role role) {
    return values_of(*found.find(layer, role)->b)[0] / values_of(*repairs.find(layer, role)->b)[0];
  };
  CHECK(ratio(1, Role::kDown) == doctest::Approx(2));
  CHECK(ratio(0, Role::kAttnOut) == doctest::Approx(0.5));
  CHECK(ratio(0, Role::kDown) == doctest::Approx(10.0 / 3));
}

TEST_CASE("repairs: an adapter that PEFT trained on any of the matrices loads, with patterns of its kind") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Level level = half_level(spec);
  LevelRepairs repairs = empty_repairs(spec, level.nominal);
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    if (tensor->role != Role::kQuery && tensor->role != Role::kGate) continue;
    const Shape shape = shape_at(*tensor, level.widths);
    const int64_t rank = tensor->role == Role::kGate && tensor->layer == 1 ? 4 : 2;
    repairs.at(*tensor).a = numbers({rank, shape[1]}, 1);
    repairs.at(*tensor).b = numbers({shape[0], rank}, 1);
  }
  const TemporaryDirectory directory;
  save_adapters(repairs, spec, level, "", directory / "a");
  const auto load_with = [&](const std::function<void(Json&)>& change) {
    const TemporaryDirectory changed;
    fs::copy(directory / "a", changed / "a");
    change_json(changed / "a/adapter_config.json", change);
    return load_adapters(changed / "a", spec, level);
  };
  const auto factor = [&](const LevelRepairs& found, int64_t layer, Role role) {
    return values_of(*found.find(layer, role)->b)[0] / values_of(*repairs.find(layer, role)->b)[0];
  };
  // A configuration as PEFT writes it: keys that we do not write, other targets, patterns that are regular
  // expressions.
  const LevelRepairs found = load_with([](Json& json) {
    json = {{"peft_type", "LORA"},
            {"base_model_name_or_path", "somewhere"},
            {"r", 2},
            {"lora_alpha", 16},
            {"target_modules", "all-linear"},
            {"modules_to_save", nullptr},
            {"rank_pattern", {{"layers\\.[1-9]\\..*gate_proj", 4}}},
            {"alpha_pattern", {{"0.self_attn.q_proj", 6}, {".*q_proj", 8}, {"self_attn.q_proj", 99}}}};
  });
  CHECK(name_of(found.parts()) == "adapter");
  // A PEFT directory can be used as a level's repairs unchanged.
  save_adapters(repairs, spec, level, "", repairs_directory(directory.path(), 0.5));
  CHECK(check_same(repairs, *find_repairs(directory.path(), spec, level), spec, level.widths) == 4);
  CHECK(factor(found, 0, Role::kQuery) == doctest::Approx(3));
  CHECK(factor(found, 1, Role::kQuery) == doctest::Approx(4));
  CHECK(factor(found, 0, Role::kGate) == doctest::Approx(8));
  CHECK(factor(found, 1, Role::kGate) == doctest::Approx(4));
  CHECK(found.find(0, Role::kUp) == nullptr);
  CHECK(message_of([&] {
          load_with([](Json& json) { json["alpha_pattern"] = {{"q_proj[", 4}}; });
        }).find("adapter_config.json: alpha_pattern: q_proj[: not a regular expression") !=
        std::string::npos);
}

TEST_CASE("repairs: what does not fit the level is refused by file and tensor") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Level level = half_level(spec);
  const std::string o = "base_model.model.model.layers.0.self_attn.o_proj.";
  struct Bad {
    std::string file, message;
    std::function<void(const fs::path&)> change;
  };
  const auto tensors = [](const std::string& name, auto change) {
    return [=](const fs::path& file) {
      change_tensors(file, [&](auto& all) {
        for (auto each = all.begin(); each != all.end(); ++each)
          if (each->first == name) {
            change(all, each);
            return;
          }
        FAIL("no tensor " << name);
      });
    };
  };
  const auto json = [](auto change) {
    return [=](const fs::path& file) { change_json(file, [&](Json& value) { change(value); }); };
  };
  const std::string adapters = "adapter_model.safetensors", weights = "weights.safetensors",
                    config = "adapter_config.json", description = "repair.json";
  const std::vector<Bad> table{
      {adapters, o + "lora_A.weight: expected shape [2, 16], got [2, 17]",
       tensors(o + "lora_A.weight",
               [](auto&, auto each) {
                 each->second = numbers({2, 17}, 0);
               })},
      {adapters, o + "lora_B.weight: expected shape [32, 2], got [32, 3]",
       tensors(o + "lora_B.weight",
               [](auto&, auto each) {
                 each->second = numbers({32, 3}, 0);
               })},
      {adapters, o + "lora_A.weight: incomplete adapter: " + o + "lora_B.weight is missing",
       tensors(o + "lora_B.weight", [](auto& all, auto each) { all.erase(each); })},
      {adapters, "expected two dimensions, got shape [6]",
       tensors(o + "lora_A.weight", [](auto&, auto each) { each->second = numbers({6}, 0); })},
      {adapters, "unexpected tensors: other",
       tensors(o + "lora_A.weight", [](auto& all, auto) { all.emplace_back("other", numbers({1}, 0)); })},
      {adapters, o + "lora_A.weight: element 0: expected a finite number, got nan",
       tensors(o + "lora_A.weight",
               [](auto&, auto each) {
                 each->second = numbers({2, 16}, std::numeric_limits<float>::quiet_NaN());
               })},
      {weights, "model.layers.1.self_attn.o_proj.weight: expected shape [32, 16], got [32, 8]",
       tensors("model.layers.1.self_attn.o_proj.weight",
               [](auto&, auto each) {
                 each->second = numbers({32, 8}, 0);
               })},
      {weights, "model.layers.0.self_attn.o_proj.bias: expected shape [32], got [31]",
       tensors("model.layers.0.self_attn.o_proj.bias",
               [](auto&, auto each) { each->second = numbers({31}, 0); })},
      {weights, "model.layers.0.self_attn.o_proj.bias: element 0: expected a finite number, got inf",
       tensors(
           "model.layers.0.self_attn.o_proj.bias",
           [](auto&, auto each) { each->second = numbers({32}, std::numeric_limits<float>::infinity()); })},
      {config, "rank of model.layers.0.self_attn.o_proj: 4, but adapter_model.safetensors holds",
       json([](Json& value) { value["rank_pattern"]["model.layers.0.self_attn.o_proj"] = 4; })},
      {config, "peft_type: expected \"LORA\", got \"IA3\"",
       json([](Json& value) { value["peft_type"] = "IA3"; })},
      {config, "use_dora: true is not supported", json([](Json& value) { value["use_dora"] = true; })},
      {description, "level: expected 0.5, got 0.25", json([](Json& value) { value["level"] = 0.25; })},
      {description, "version: 9 is not supported", json([](Json& value) { value["version"] = 9; })},
      {description, "spec_hash: expected ",
       json([](Json& value) { value["spec_hash"] = "0123456789abcdef"; })},
      {description, "compensation: unknown compensation 'glue'; known are adapter, baked, bias, norm",
       json([](Json& value) { value["compensation"] = "bias+glue"; })},
      {description, "not valid JSON", [](const fs::path& file) { write_text(file, "{"); }},
      {weights, "weights.safetensors", [](const fs::path& file) { fs::remove(file); }},
      {adapters, "weight: type I32 is not supported",
       [](const fs::path& file) {
         std::string bytes = read_text(file);
         bytes.replace(bytes.find("\"F32\""), 5, "\"I32\"");
         write_text(file, bytes);
       }},
      {adapters, "adapter_model.safetensors", [](const fs::path& file) { fs::resize_file(file, 40); }},
  };
  for (const Bad& bad : table) {
    CAPTURE(bad.message);
    const TemporaryDirectory directory;
    save_repairs(mixed_repairs(spec, level), spec, level, directory / "r");
    bad.change(directory / "r" / bad.file);
    const std::string said = message_of([&] { load_repairs(directory / "r", spec, level); });
    CAPTURE(said);
    CHECK(said.find(bad.message) != std::string::npos);
    CHECK(said.find((directory / "r" / bad.file).string()) == 0);
  }
}

TEST_CASE("repairs: adapters of every matrix are checked against the level's widths, by name") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Level level = half_level(spec);
  // [out, in] with half of 2 KV groups and 64 neurons: o and down have narrow inputs, the others narrow
  // outputs.
  const std::tuple<const char*, int64_t, int64_t> matrices[] = {
      {"self_attn.q_proj", 16, 32}, {"self_attn.k_proj", 8, 32}, {"self_attn.v_proj", 8, 32},
      {"self_attn.o_proj", 32, 16}, {"mlp.gate_proj", 32, 32},   {"mlp.up_proj", 32, 32},
      {"mlp.down_proj", 32, 32}};
  int64_t rank = 0;
  for (const auto& [module, out, in] : matrices) {
    ++rank;
    CAPTURE(module);
    const std::string name = fmt::format("base_model.model.model.layers.1.{}.lora_", module);
    const auto refused = [&](const std::string& changed, const std::optional<HostTensor>& with) {
      const TemporaryDirectory directory;
      LevelRepairs repairs = all_repairs(spec, level);
      for (LayerRepairs& layer : repairs.layers)
        for (auto& [role, repair] : layer) repair.weight = repair.bias = std::nullopt;
      save_adapters(repairs, spec, level, "", directory / "a");
      change_tensors(directory / "a/adapter_model.safetensors", [&](auto& all) {
        for (auto each = all.begin(); each != all.end(); ++each)
          if (each->first == changed) {
            if (with)
              each->second = *with;
            else
              all.erase(each);
            return;
          }
        FAIL("no tensor " << changed);
      });
      const std::string said = message_of([&] { load_adapters(directory / "a", spec, level); });
      CHECK(said.find((directory / "a/adapter_model.safetensors").string() + ": ") == 0);
      return said;
    };
    // Every matrix has another rank: layer 1 has 8 to 14.
    const int64_t r = 7 + rank;
    CHECK(refused(name + "A.weight", numbers({r, in + 1}, 0))
              .find(fmt::format("{}A.weight: expected shape [{}, {}], got [{}, {}]", name, r, in, r,
                                in + 1)) != std::string::npos);
    CHECK(refused(name + "B.weight", numbers({out + 8, r}, 0))
              .find(fmt::format("{}B.weight: expected shape [{}, {}], got [{}, {}]", name, out, r, out + 8,
                                r)) != std::string::npos);
    CHECK(refused(name + "B.weight", numbers({out, r}, std::numeric_limits<float>::quiet_NaN()))
              .find(name + "B.weight: element 0: expected a finite number, got nan") != std::string::npos);
    CHECK(refused(name + "A.weight", std::nullopt).find(name + "B.weight: incomplete adapter") !=
          std::string::npos);
  }
}

TEST_CASE("repairs: adapters of other modules are refused, with those that there are") {
  const ModelSpec spec = make_tiny_spec("qwen3");
  const Level level = half_level(spec);
  const TemporaryDirectory directory;
  save_adapters(mixed_repairs(spec, level), spec, level, "", directory / "a");
  change_tensors(directory / "a/adapter_model.safetensors", [](auto& all) {
    for (const char* half : {"A", "B"})
      all.emplace_back(fmt::format("base_model.model.lm_head.lora_{}.weight", half), numbers({2, 2}, 0));
  });
  CHECK(message_of([&] {
          load_adapters(directory / "a", spec, level);
        }).find("unexpected tensors: base_model.model.lm_head.lora_A.weight") != std::string::npos);
  CHECK(hint_of([&] { load_adapters(directory / "a", spec, level); }) ==
        "adapters may be of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in the layers that "
        "the level keeps");
}
