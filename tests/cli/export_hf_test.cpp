// Tests the program on Hugging Face directories: export, verify, inspect, and refused input.

#include <nlohmann/json.hpp>

#include "support/program.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using test::Outcome;
using test::run_elastify;

TEST_SUITE("cli") {
  TEST_CASE("cli: export --hf writes directories that verify and inspect read") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform,
                                     {true, false, false});
    const test::TemporaryDirectory work;
    const std::string out = made.reordered().string(), art = (work / "art").string();
    const Outcome exported = run_elastify(fmt::format("export {} --hf --levels 0.6 -o {} --json", out, art));
    CAPTURE(exported.err);
    REQUIRE(exported.status == 0);
    const auto report = nlohmann::json::parse(exported.out);
    CHECK(report.at("tokenizer") == false);
    REQUIRE(report.at("files").size() == 2);
    CHECK(report.at("files")[1].at("name") == "level-060");
    CHECK(report.at("files")[1].at("adapter") == "lora-060");
    const Outcome said = run_elastify(fmt::format("export {} --hf --type bf16 -o {} --force", out, art));
    CAPTURE(said.err);
    REQUIRE(said.status == 0);
    CHECK(said.out.find("without a tokenizer") != std::string::npos);

    const Outcome proof = run_elastify(fmt::format("verify {} --against {}", art, made.model().string()));
    CHECK_MESSAGE(proof.status == 0, proof.out);
    CHECK(proof.out.find("lora-060: adapter: ") != std::string::npos);
    const Outcome whole = run_elastify(fmt::format("inspect {} --json", art));
    CAPTURE(whole.err);
    REQUIRE(whole.status == 0);
    CHECK(nlohmann::json::parse(whole.out).at("levels").size() == 3);
    const Outcome level = run_elastify(fmt::format("inspect {}/level-060 --json", art));
    CAPTURE(level.err);
    REQUIRE(level.status == 0);
    CHECK(nlohmann::json::parse(level.out).at("stored_types").contains("bf16"));
    CHECK(nlohmann::json::parse(level.out).at("n_params") < nlohmann::json::parse(whole.out).at("n_params"));
  }

  TEST_CASE("cli: what a Hugging Face directory cannot hold is refused before anything is written") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kAnchors,
                                     {false, false, false});
    const test::TemporaryDirectory work;
    const std::string common =
        fmt::format("export {} --hf -o {}/x ", made.reordered().string(), work.path().string());
    const Outcome quantised = run_elastify(common + "--type q8_0");
    CHECK(quantised.status == 2);
    CHECK(quantised.err.find("cannot be written as q8_0") != std::string::npos);
    CHECK(run_elastify(common + "--type f32,f16").err.find("export once per type") != std::string::npos);
    for (const char* other :
         {"--packed", "--shared-common", "--max-ram 1GiB", "--adapter-type f32", "--imatrix p.h5"})
      CHECK(run_elastify(common + other).err.find("excludes") != std::string::npos);
    const Outcome uneven = run_elastify(common);
    CHECK(uneven.status == 1);
    CHECK(uneven.err.find("level-080: widths differ by layer") != std::string::npos);
    CHECK(uneven.err.find("plan with `uniform`") != std::string::npos);
    CHECK_FALSE(fs::exists(work / "x"));
  }
}

}  // namespace
}  // namespace elastify
