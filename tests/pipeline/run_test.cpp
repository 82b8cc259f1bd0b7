#include "pipeline/run.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "report/run_view.h"
#include "support/elastic_fixture.h"
#include "support/errors.h"
#include "support/shared_data.h"

namespace elastify::pipeline {
namespace {

/// A short run on a real model of the shared data.
RunConfig short_run(const fs::path& output) {
  RunConfig config;
  config.model = (test::shared_data() / "models/stories260K/stories260K.bin").string();
  config.tokenizer = (test::shared_data() / "models/stories260K/tok512.model").string();
  config.output = output.string();
  config.profile.text.data = {
      (test::shared_data() / "datasets/tinystories/tinystories_v2gpt4_10k_lines.txt").string()};
  config.profile.text.tokens = 1024;
  config.profile.text.seq = 64;
  config.reorder.plan.levels = {0.6, 1.0};
  config.eval.text.data = {
      (test::shared_data() / "datasets/tinystories/tinystories_v1_valid_head_0.8MB.txt").string()};
  config.eval.text.tokens = 1024;
  config.eval.text.seq = 64;
  config.eval.baseline = true;
  return config;
}

std::map<std::string, std::string> hashes(const fs::path& directory) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    const auto name = fs::relative(entry.path(), directory).string();
    if (entry.is_regular_file() &&
        (name.find("artifact") == 0 || name.find("reordered") == 0 || name == "profile.h5"))
      all[name] = sha256_file(entry.path());
  }
  return all;
}

TEST_SUITE("pipeline") {
  TEST_CASE("run: a second run does nothing, a changed option redoes what depends on it, and bytes repeat") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    RunConfig config = short_run(directory.path() / "a");
    const auto report = run(config, false);
    REQUIRE(report.at("levels").size() == 2);
    const double narrow = report.at("levels")[0].at("perplexity"),
                 full = report.at("levels")[1].at("perplexity");
    CHECK(full < narrow);
    CHECK(narrow < report.at("levels")[0].at("perplexity_random_order").get<double>());
    CHECK(report::run_table(report).find("level-060.gguf") != std::string::npos);

    const auto before = hashes(directory.path() / "a");
    const auto written = fs::last_write_time(directory.path() / "a/profile.h5");
    const auto exported = fs::last_write_time(directory.path() / "a/artifact/manifest.json");
    CHECK(run(config, false) == report);
    CHECK(fs::last_write_time(directory.path() / "a/artifact/manifest.json") == exported);

    // A missing artifact, as after an interrupted export, is made again with the same bytes.
    fs::remove_all(directory.path() / "a/artifact");
    run(config, false);
    CHECK(hashes(directory.path() / "a") == before);
    CHECK(fs::last_write_time(directory.path() / "a/profile.h5") == written);

    config.output = (directory.path() / "b").string();
    run(config, false);
    CHECK(hashes(directory.path() / "b") == before);

    config.export_.types = {DType::kF32};
    run(config, false);
    CHECK(hashes(directory.path() / "b").at("profile.h5") == before.at("profile.h5"));
    CHECK(hashes(directory.path() / "b").at("artifact/full.gguf") != before.at("artifact/full.gguf"));
  }

  TEST_CASE("run: a product with a file that is missing or was changed is made again") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    const RunConfig config = short_run(directory / "a");
    run(config, false);
    const auto before = hashes(directory / "a");
    fs::remove(directory / "a/artifact/level-060.gguf");
    fs::resize_file(directory / "a/reordered/model.safetensors", 1000);
    fs::resize_file(directory / "a/profile.h5", 1000);
    run(config, false);
    CHECK(hashes(directory / "a") == before);
  }

  TEST_CASE("run: what elastify did not write, and inputs, are left alone") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    const RunConfig config = short_run(directory / "a");
    const auto refusal = [&](const RunConfig& refused) {
      return test::message_of([&] { run(refused, false); });
    };
    write_text(directory / "a/config.yaml", "mine: 1\n");
    CHECK(refusal(config).find("a/config.yaml: elastify did not write this") != std::string::npos);
    CHECK(read_text(directory / "a/config.yaml") == "mine: 1\n");
    fs::remove(directory / "a/config.yaml");
    run(config, false);
    write_text(directory / "a/reordered/thesis.txt", "mine");
    CHECK(refusal(config).find("reordered: contains thesis.txt, which elastify did not write") !=
          std::string::npos);
    CHECK(read_text(directory / "a/reordered/thesis.txt") == "mine");

    RunConfig own_input = config;
    own_input.output = (directory / "b").string();
    fs::create_directory(directory / "b");
    fs::copy_file(config.eval.text.data.front(), directory / "b/report.json");
    own_input.eval.text.data = {(directory / "b/report.json").string()};
    CHECK(refusal(own_input).find("b/report.json: is the input ") != std::string::npos);
  }

  TEST_CASE("run: a step that fails leaves what was completed and no half-written output") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    RunConfig config = short_run(directory.path() / "out");
    config.export_.types = {DType::kQ8_0};  // 172 columns do not fit blocks of 32
    CHECK_THROWS_AS(run(config, false), Error);
    CHECK(fs::exists(directory.path() / "out/reordered/permutation.h5"));
    for (const auto& entry : fs::directory_iterator(directory.path() / "out"))
      CHECK(entry.path().filename().string().find(".tmp-") == std::string::npos);
    CHECK_FALSE(fs::exists(directory.path() / "out/artifact"));
  }
}

}  // namespace
}  // namespace elastify::pipeline
