#include "pipeline/fit_to_model.h"

#include <doctest/doctest.h>

#include "pipeline/presets.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace elastify::pipeline {
namespace {

using test::message_of;

void set(RunConfig& config, const std::string& key, const std::string& word) {
  options::Options list;
  declare(list, config);
  list.set(key, options::Given::text(word, "--flag"), config.sources);
}

TEST_SUITE("pipeline") {
  TEST_CASE("defaults: sequences, grid and levels bend to a small model, and what was written is refused") {
    ModelSpec spec = test::make_tiny_spec("llama");
    spec.max_seq = 128;
    RunConfig config;
    fit_to_model(config, spec);
    CHECK(config.profile.text.seq == 128);
    CHECK(config.eval.text.seq == 128);
    CHECK(config.sources.at("profile.seq").find("fitted to the model") == 0);

    RunConfig written;
    set(written, "profile.seq", "256");
    CHECK(message_of([&] { fit_to_model(written, spec); }) ==
          "profile.seq: expected at most 128, the model's context, got 256");
    RunConfig few;
    set(few, "profile.tokens", "64");
    CHECK(message_of([&] { fit_to_model(few, spec); }) ==
          "profile.tokens: expected at least 128, one sequence, got 64");
    RunConfig coarse;
    set(coarse, "reorder.grid", "100000");
    CHECK(message_of([&] { fit_to_model(coarse, spec); }).find("reorder.grid: expected at most ") == 0);
    RunConfig large;
    set(large, "reorder.rank", "100000");
    CHECK(message_of([&] { fit_to_model(large, spec); }).find("reorder.rank: expected at most ") == 0);
  }

  TEST_CASE("defaults: levels below the narrowest sub-model are left out, and a rank is not near the width") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    RunConfig config;
    config.reorder.plan.grid = 32;
    config.sources["reorder.grid"] = "--grid";
    config.reorder.repair.rank = spec.d_model;
    fit_to_model(config, spec);
    CHECK(config.reorder.plan.levels.front() > 0.2);
    CHECK(config.reorder.plan.levels.back() == 1);
    CHECK(config.reorder.repair.rank == std::max<int64_t>(spec.d_model / 8, 1));
  }

  TEST_CASE("defaults: a preset's rank is a share of the width") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    RunConfig config;
    config.profile.text.data = {"text.txt"};
    config.preset = "best";
    complete(config);
    fit_to_model(config, spec);
    CHECK(config.reorder.repair.rank == std::max<int64_t>(spec.d_model / 8, 1));
    CHECK(config.sources.at("reorder.rank").find("preset best") == 0);
  }
}

}  // namespace
}  // namespace elastify::pipeline
