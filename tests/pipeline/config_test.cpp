#include "pipeline/sweep_config.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "support/temporary_directory.h"

namespace elastify::pipeline {
namespace {

RunConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const test::TemporaryDirectory directory;
  write_text(directory.path() / "run.yaml", text);
  return load_config(directory.path() / "run.yaml", overrides);
}

const std::string kMinimal = "model: m.gguf\noutput: out\npreset: none\neval: {data: held.txt}\n";

TEST_SUITE("pipeline") {
  TEST_CASE("config: what the file leaves out has the documented default") {
    const RunConfig config = parse(kMinimal);
    CHECK(config.profile.text.data == std::vector<std::string>{"self"});
    CHECK(config.profile.text.tokens == 6400);
    CHECK(config.reorder.plan.levels.size() == 9);
    CHECK(exporter::to_text(config.export_.types) == "f16");
  }

  TEST_CASE("config: whether fits follow the layers below goes by the compensation, unless it is said") {
    const auto repair = [](const std::vector<std::string>& overrides) {
      return to_json(parse(kMinimal, overrides)).at("reorder");
    };
    for (const char* key : {"sequential", "whole_stream"}) {
      CHECK(repair({}).at(key) == true);
      CHECK(repair({"reorder.compensate=baked+bias"}).at(key) == true);
      CHECK(repair({"reorder.compensate=adapter"}).at(key) == false);
      CHECK(repair({"reorder.compensate=adapter+bias"}).at(key) == false);
      CHECK(repair({"reorder.compensate=adapter+norm"}).at(key) == true);
      const std::string option = std::string("reorder.") + key;
      CHECK(repair({"reorder.compensate=adapter", option + "=true"}).at(key) == true);
      CHECK(repair({"reorder.compensate=baked", option + "=false"}).at(key) == false);
    }
  }

  TEST_CASE("config: every option of the resolved form is read back to the same value") {
    const RunConfig config =
        parse(kMinimal,
              {"profile.tokens=77", "reorder.plan=anchors", "reorder.levels=0.5,0.7", "export.type=q8_0",
               "profile.metrics=[taylor, magnitude]", "eval.baseline=false", "seed=3", "export.packed=true"});
    CHECK(to_json(config).at("export").at("packed") == true);
    // The resolved configuration is JSON, which is valid YAML, so it can be loaded as a configuration.
    const std::string resolved = to_json(config).dump(2);
    CHECK(to_json(parse(resolved)).dump(2) == resolved);
    CHECK(config.profile.text.tokens == 77);
    CHECK(config.reorder.plan.method == plan::Method::kAnchors);
    CHECK(config.reorder.plan.levels == std::vector<double>{0.5, 0.7, 1.0});
  }

  TEST_CASE("config: searched widths have a budget, least widths, elastic depth and the order's metric") {
    const plan::PlanOptions usual = parse(kMinimal).reorder.plan;
    CHECK(plan::to_text(usual.budget) == "decoder");
    CHECK(usual.min_width == 0);
    CHECK(!usual.depth);
    CHECK(usual.search_steps == 100);
    const RunConfig config =
        parse(kMinimal, {"reorder.plan=dp+kl", "reorder.budget=bytes:q4_k", "reorder.min_width=0.25",
                         "reorder.depth=true", "reorder.search_steps=0", "reorder.metric=wanda"});
    CHECK(config.reorder.plan.method == plan::Method::kDpKl);
    CHECK(config.reorder.plan.budget.type == DType::kQ4_K);
    CHECK(config.reorder.plan.min_width == 0.25);
    CHECK(config.reorder.plan.depth);
    CHECK(config.reorder.plan.search_steps == 0);
    CHECK(config.reorder.plan.metric == Metric::kWanda);
    CHECK(value_of(config, "reorder.budget") == "bytes:q4_k");
    CHECK(value_of(parse(kMinimal, {"reorder.budget=latency:t.json"}), "reorder.budget") ==
          "latency:t.json:gen");
    CHECK(parse(kMinimal, {"reorder.min_width=0"}).reorder.plan.min_width == 0);
  }

  TEST_CASE("config: a bad file is refused with line, key and a way out") {
    struct Bad {
      std::string text, message, hint;
    };
    const std::vector<Bad> table{
        {kMinimal + "profile:\n  tokns: 5\n", "run.yaml:6: unknown key 'profile.tokns'",
         "did you mean 'tokens'?"},
        {kMinimal + "mode: x\n", "run.yaml:5: unknown key 'mode'", "did you mean 'model'?"},
        {kMinimal + "seed: 1\nseed: 2\n", "run.yaml:6: seed: is given twice", ""},
        {kMinimal + "profile:\n  tokens: many\n",
         "run.yaml:6: profile.tokens: expected a whole number, got 'many'", ""},
        {kMinimal + "profile:\n  tokens: 1e3\n",
         "run.yaml:6: profile.tokens: expected a whole number, got '1e3'", ""},
        {kMinimal + "profile:\n  seq: 1\n", "run.yaml:6: profile.seq: expected 2 to 1048576, got 1", ""},
        {kMinimal + "profile: 7\n", "run.yaml:5: profile: expected a section with keys, got '7'", ""},
        {kMinimal + "reorder:\n  metric: tailor\n", "run.yaml:6: reorder.metric: ", ""},
        {kMinimal + "reorder:\n  plan: best\n", "run.yaml:6: reorder.plan: ", ""},
        {kMinimal + "reorder:\n  anchor_share: 2\n", "run.yaml:6: reorder.anchor_share: expected a share",
         ""},
        {kMinimal + "reorder:\n  budget: money\n", "run.yaml:6: reorder.budget: budget 'money': not known",
         "known are decoder, params, bytes:TYPE"},
        {kMinimal + "reorder:\n  budget: bytes:q9\n", "run.yaml:6: reorder.budget: budget 'bytes:q9': ", ""},
        {kMinimal + "reorder:\n  min_width: -0.1\n",
         "run.yaml:6: reorder.min_width: expected a share from 0 to 1, got -0.1", ""},
        {kMinimal + "reorder:\n  search_steps: -1\n",
         "run.yaml:6: reorder.search_steps: expected at least 0, got -1", ""},
        {kMinimal + "export:\n  type: q9\n", "run.yaml:6: export.type: ", ""},
        {kMinimal + "export:\n  levels: [0.5, x]\n", "run.yaml:6: export.levels: levels: cannot read 'x'",
         ""},
        {"model: [a\n", "run.yaml:", ""},
        {"just text", "expected a section with keys, got 'just text'", ""},
        {"output: out\neval: {data: h}\n", "model is missing", ""},
        {"model: m\noutput: out\n", "eval.data is missing", "name a text file"},
        {"", "model is missing", ""},
    };
    for (const Bad& bad : table) {
      CAPTURE(bad.text);
      try {
        parse(bad.text);
        FAIL("accepted");
      } catch (const UsageError& error) {
        CHECK(std::string(error.what()).find(bad.message) != std::string::npos);
        CHECK(error.hint().find(bad.hint) != std::string::npos);
        CAPTURE(error.what());
      }
    }
  }

  TEST_CASE("config: an override that is not section.key=value is refused") {
    for (const char* text : {"tokens", "=3", "model.x=3"}) {
      CAPTURE(text);
      CHECK_THROWS_AS(parse(kMinimal, {text}), UsageError);
    }
    CHECK_THROWS_WITH_AS(parse(kMinimal, {"profile.tokns=3"}),
                         doctest::Contains("unknown key 'profile.tokns'"), UsageError);
  }

  TEST_CASE("config: every file in configs/ loads") {
    int n = 0;
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(ELASTIFY_SOURCE_DIR) / "configs")) {
      if (entry.path().extension() != ".yaml") continue;
      CAPTURE(entry.path().string());
      if (read_text(entry.path()).find("\ngrid:") != std::string::npos)
        CHECK(load_sweep(entry.path()).points.size() > 1);
      else
        CHECK_NOTHROW(load_config(entry.path()));
      ++n;
    }
    CHECK(n > 0);
  }
}

}  // namespace
}  // namespace elastify::pipeline
