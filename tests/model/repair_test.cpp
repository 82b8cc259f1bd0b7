#include "model/repair.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

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

/// Ranks 2, 3, none and 5; biases and weights of their own in some places.
LevelRepairs mixed_repairs(const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs{.nominal = level.nominal, .compensation = "adapter+bias", .layers = {}};
  repairs.layers.resize(static_cast<size_t>(spec.n_layers));
  const int64_t ranks[] = {2, 3, 0, 5};
  size_t n = 0;
  for (const RepairPlace& place : repair_places(repairs, spec, level.widths)) {
    const Shape shape = shape_at(*place.tensor, level.widths);
    const int64_t rank = ranks[n++];
    if (rank > 0) {
      place.repair->a = numbers({rank, shape[1]}, 1);
      place.repair->b = numbers({shape[0], rank}, -3);
    } else {
      place.repair->weight = numbers(shape, 7);
    }
    if (n != 2) place.repair->bias = numbers({shape[0]}, 0.5F);
  }
  return repairs;
}

bool same(const std::optional<HostTensor>& a, const std::optional<HostTensor>& b) {
  return a.has_value() == b.has_value() && (!a || same_bytes(*a, *b));
}

void change_json(const fs::path& file, const std::function<void(Json&)>& change) {
  Json json = Json::parse(read_text(file));
  change(json);
  write_text(file, json.dump());
}

/// Writes the file's tensors again after a change.
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
  CHECK(found->compensation == "adapter+bias");
  CHECK(found->nominal == 0.5);
  CHECK(found->has_adapters());
  CHECK(found->has_biases());
  CHECK(found->n_own_weights() == 1);
  const auto before = repair_places(repairs, spec, level.widths);
  const auto after = repair_places(*found, spec, level.widths);
  REQUIRE(after.size() == 4);
  for (size_t i = 0; i < after.size(); ++i) {
    CAPTURE(after[i].tensor->name);
    CHECK(same(before[i].repair->weight, after[i].repair->weight));
    CHECK(same(before[i].repair->a, after[i].repair->a));
    CHECK(same(before[i].repair->b, after[i].repair->b));
    CHECK(same(before[i].repair->bias, after[i].repair->bias));
  }
  CHECK_FALSE(find_repairs(directory.path(), spec, make_level(spec, 1, full_widths(spec))));
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
  const auto ratio = [](const MatrixRepair& now, const MatrixRepair& then) {
    return values_of(*now.b)[0] / values_of(*then.b)[0];
  };
  CHECK(ratio(found.layers[1].down, repairs.layers[1].down) == doctest::Approx(2));
  CHECK(ratio(found.layers[0].attention_out, repairs.layers[0].attention_out) == doctest::Approx(0.5));
  CHECK(ratio(found.layers[0].down, repairs.layers[0].down) == doctest::Approx(10.0 / 3));
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
      {adapters, o + "lora_A.weight: half of an adapter: " + o + "lora_B.weight is missing",
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
      {description, "not valid JSON", [](const fs::path& file) { write_text(file, "{"); }},
      {weights, "weights.safetensors", [](const fs::path& file) { fs::remove(file); }},
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
