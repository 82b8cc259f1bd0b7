#include "model/plan.h"

#include <doctest/doctest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "support/errors.h"
#include "support/mutations.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;
using Json = nlohmann::ordered_json;

namespace {

ModelSpec spec_of_plan() {
  return make_tiny_spec("llama", {.n_kv_heads = 4, .d_ff = 100});
}

ElasticPlan make_plan(const ModelSpec& spec) {
  ElasticPlan plan{.spec_hash = spec_hash(spec),
                   .method = "anchors",
                   .grid = 32,
                   .anchors = {1},
                   .levels = {},
                   .notes = {"level 0.25 keeps one group"}};
  plan.levels = {make_level(spec, 0.25, {1, 32, 2, 32}), make_level(spec, 0.5, {1, 32, 4, 64}),
                 make_level(spec, 1, full_widths(spec))};
  return plan;
}

}  // namespace

TEST_CASE("plan: levels are named after their nominal width") {
  CHECK(level_name(0.5) == "level-050");
  CHECK(level_name(0.25) == "level-025");
  CHECK(level_name(0.05) == "level-005");
  CHECK(level_name(0.375) == "level-0375");
  CHECK(level_name(0.125) == "level-0125");
  CHECK(level_name(0.3) == "level-030");
  CHECK(level_name(1) == "level-100");
}

TEST_CASE("plan: a level's ratios are those of its weights") {
  const ModelSpec spec = spec_of_plan();
  const Level full = make_level(spec, 1, full_widths(spec));
  CHECK(full.decoder_ratio == 1);
  CHECK(full.total_ratio == 1);
  const Level half = make_level(spec, 0.5, {2, 50, 2, 50});
  const int64_t norms = 2 * 2 * 32;
  const int64_t decoder = n_decoder_params(spec, full_widths(spec));
  CHECK(half.decoder_ratio ==
        doctest::Approx(static_cast<double>((decoder - norms) / 2 + norms) / static_cast<double>(decoder)));
  CHECK(half.total_ratio > half.decoder_ratio);
}

TEST_CASE("plan: levels are found by their nominal width") {
  const ElasticPlan plan = make_plan(spec_of_plan());
  CHECK(&find_level(plan, 0.5) == &plan.levels[1]);
  CHECK(&find_level(plan, 0.1 + 0.15) == &plan.levels[0]);
  CHECK_THROWS_WITH_AS(find_level(plan, 0.75), "no level 0.75 in the plan; there are 0.25, 0.5, 1",
                       UsageError);
}

TEST_CASE("plan: saved and loaded it is the same, with equal bytes each time") {
  const ModelSpec spec = spec_of_plan();
  const ElasticPlan plan = make_plan(spec);
  const TemporaryDirectory directory;
  save_plan(plan, spec, directory / "a.json");
  const ElasticPlan loaded = load_plan(directory / "a.json", spec);
  save_plan(loaded, spec, directory / "b.json");
  CHECK(read_text(directory / "a.json") == read_text(directory / "b.json"));
  CHECK(loaded.method == "anchors");
  CHECK(loaded.grid == 32);
  CHECK(loaded.anchors == plan.anchors);
  CHECK(loaded.notes == plan.notes);
  REQUIRE(loaded.levels.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(loaded.levels[i].nominal == plan.levels[i].nominal);
    CHECK(loaded.levels[i].decoder_ratio == plan.levels[i].decoder_ratio);
    CHECK(loaded.levels[i].total_ratio == plan.levels[i].total_ratio);
    CHECK(loaded.levels[i].widths == plan.levels[i].widths);
  }
}

TEST_CASE("plan: its file lists widths by layer") {
  const ModelSpec spec = spec_of_plan();
  const TemporaryDirectory directory;
  save_plan(make_plan(spec), spec, directory / "p.json");
  const Json json = Json::parse(read_text(directory / "p.json"));
  CHECK(json["format"] == "elastify.plan");
  CHECK(json["version"] == 1);
  CHECK(json["levels"][1]["kv_groups"] == Json{1, 4});
  CHECK(json["levels"][1]["d_ff"] == Json{32, 64});
}

TEST_CASE("plan: its file states the budget; where it does not, levels are shares of the decoder weights") {
  const ModelSpec spec = spec_of_plan();
  const TemporaryDirectory directory;
  const fs::path path = directory / "p.json";
  ElasticPlan plan = make_plan(spec);
  plan.budget = "bytes:q4_k";
  plan.curves = "measured";
  plan.levels[0].budget_ratio = 0.3;
  save_plan(plan, spec, path);
  const ElasticPlan loaded = load_plan(path, spec);
  CHECK(loaded.budget == "bytes:q4_k");
  CHECK(loaded.curves == "measured");
  CHECK(loaded.levels[0].budget_ratio == 0.3);
  Json json = Json::parse(read_text(path));
  json["levels"][0]["budget_ratio"] = 1.5;
  write_text(path, json.dump());
  CHECK(message_of([&] {
          load_plan(path, spec);
        }).find("budget_ratio is 1.5, expected more than 0, up to 1") != std::string::npos);
  json.erase("budget");
  json.erase("curves");
  for (Json& level : json["levels"]) level.erase("budget_ratio");
  write_text(path, json.dump());
  const ElasticPlan old = load_plan(path, spec);
  CHECK(old.budget == "decoder");
  CHECK(old.curves.empty());
  CHECK(old.levels[0].budget_ratio == doctest::Approx(old.levels[0].decoder_ratio));
}

TEST_CASE("plan: a bad file is refused with the level and space at fault") {
  const ModelSpec spec = spec_of_plan();
  const TemporaryDirectory directory;
  const fs::path path = directory / "p.json";
  save_plan(make_plan(spec), spec, path);
  const Json good = Json::parse(read_text(path));
  const auto message = [&] {
    return message_of([&] { load_plan(path, spec); }).substr(path.string().size() + 2);
  };

  struct Case {
    std::function<void(Json&)> spoil;
    std::string message;
  };
  const std::vector<Case> cases{
      {[](Json& p) { p = 5; }, "expected a JSON object, got 5"},
      {[](Json& p) { p.erase("format"); }, "format: missing"},
      {[](Json& p) { p["format"] = "elastify.profile"; },
       "format: expected \"elastify.plan\", got \"elastify.profile\""},
      {[](Json& p) { p["version"] = 2; }, "version: 2 is not supported; supported is 1"},
      {[](Json& p) { p["spec_hash"] = "00"; }, "the plan belongs to another model"},
      {[](Json& p) { p["method"] = 1; }, "method: expected a string, got 1"},
      {[](Json& p) { p["grid"] = 0; }, "grid is 0, expected 1 or more"},
      {[](Json& p) { p["grid"] = 32.5; }, "grid: expected an integer, got 32.5"},
      {[](Json& p) { p["anchors"] = 1; }, "anchors: expected a list, got 1"},
      {[](Json& p) { p["anchors"] = {2}; }, "anchors: layer 2 is outside 0 to 1"},
      {[](Json& p) {
         p["anchors"] = {0, 0};
       },
       "anchors: layer 0 appears twice"},
      {[](Json& p) { p["notes"] = {nullptr}; }, "notes: expected a string, got null"},
      {[](Json& p) { p["levels"] = Json::object(); }, "levels: expected a list, got an object"},
      {[](Json& p) { p["levels"] = Json::array(); }, "the plan has no levels"},
      {[](Json& p) { p["levels"][1] = "half"; }, "levels[1]: expected a JSON object, got \"half\""},
      {[](Json& p) { p["levels"][1].erase("d_ff"); }, "levels[1]: d_ff: missing"},
      {[](Json& p) { p["levels"][1]["kv_groups"] = {1}; }, "levels[1]: kv_groups: expected 2 layers, got 1"},
      {[](Json& p) { p["levels"][1]["d_ff"][0] = "32"; }, "levels[1]: d_ff: expected an integer, got \"32\""},
      {[](Json& p) { p["levels"][1]["d_ff"][0] = UINT64_MAX; },
       "levels[1]: d_ff: expected an integer, got 18446744073709551615"},
      {[](Json& p) { p["levels"][1]["nominal"] = 1.5; },
       "level-150: nominal is 1.5, expected more than 0, up to 1"},
      {[](Json& p) { p["levels"][1]["nominal"] = 0.25; },
       "level-025: nominal is 0.25, expected less than the next level's 0.25"},
      {[](Json& p) { p["levels"][1]["kv_groups"][1] = 5; },
       "level-050: layers.1.attn: width is 5, expected 0 to 4"},
      {[](Json& p) { p["levels"][1]["d_ff"][0] = 0; },
       "level-050: layers.0.mlp: width is 0 beside 1 kv groups, expected 1 to 100: stock runtimes leave out "
       "the attention of a layer without an mlp, too"},
      {[](Json& p) { p["levels"][1]["kv_groups"][0] = 0; },
       "level-050: layers.0.attn: width is 0, expected 1 to 4: stock runtimes read the size of a head from "
       "layer 0"},
      {[](Json& p) { p["levels"][1]["kv_groups"][1] = p["levels"][1]["d_ff"][1] = 0; },
       "level-050: layers.1.mlp: width is 0, expected 1 to 100: stock runtimes stop at a last layer without "
       "an mlp"},
      {[](Json& p) { p["levels"][1]["d_ff"][0] = 33; },
       "level-050: layers.0.mlp: width is 33, expected a multiple of 32 or 100"},
      {[](Json& p) { p["levels"][1]["total_ratio"] = 0.5; },
       "level-050: total_ratio is 0.5, the widths make it "},
      {[](Json& p) { p["levels"][0]["decoder_ratio"] = 0; },
       "level-025: decoder_ratio is 0, the widths make it "},
      {[](Json& p) { p["levels"].erase(2); }, "the last level is not the full model"},
  };
  for (const Case& each : cases) {
    Json spoiled = good;
    each.spoil(spoiled);
    write_text(path, spoiled.dump());
    CHECK(message().starts_with(each.message));
  }
  write_text(path, "{\"format\": ");
  CHECK(message().starts_with("not valid JSON: parse error at line 1, column 12"));
}

TEST_CASE("plan: levels that are not nested are refused by space") {
  const ModelSpec spec = spec_of_plan();
  ElasticPlan plan = make_plan(spec);
  plan.levels[0] = make_level(spec, 0.25, {1, 64, 2, 32});
  CHECK(message_of([&] { check(plan, spec); }) ==
        "level-025: layers.0.mlp: width is 64, expected at most the next level's 32");
}

TEST_CASE("plan: levels may leave out attention and whole layers, nested like other widths") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 4});
  ElasticPlan plan = shallow_plan(spec);
  const TemporaryDirectory directory;
  save_plan(plan, spec, directory / "p.json");
  const Json json = Json::parse(read_text(directory / "p.json"));
  CHECK(json["levels"][0]["kv_groups"] == Json{1, 0, 0, 0});
  CHECK(json["levels"][1]["d_ff"] == Json{64, 64, 0, 64});
  const ElasticPlan loaded = load_plan(directory / "p.json", spec);
  CHECK(loaded.levels[0].widths == plan.levels[0].widths);
  const auto kept =
      static_cast<double>(n_decoder_params(narrowed(spec, plan.levels[0].widths), plan.levels[0].widths));
  CHECK(loaded.levels[0].decoder_ratio ==
        doctest::Approx(kept / static_cast<double>(n_decoder_params(spec, full_widths(spec)))));
  Widths grown = plan.levels[0].widths;
  grown[spec.attention_space(1)] = 1;
  plan.levels[0] = make_level(spec, 0.3, grown);
  CHECK(message_of([&] { check(plan, spec); }) ==
        "level-030: layers.1.attn: width is 1, expected at most the next level's 0");
}

TEST_CASE("plan: damaged files are read or refused") {
  const ModelSpec spec = spec_of_plan();
  const TemporaryDirectory directory;
  save_plan(make_plan(spec), spec, directory / "p.json");
  const MutationCount count = read_mutations(read_text(directory / "p.json"), 2000,
                                             [&](const fs::path& path) { load_plan(path, spec); });
  CHECK(count.accepted > 0);
  CHECK(count.refused > 0);
}
