// Packed artifacts through the program: export, slice, verify, inspect.

#include <nlohmann/json.hpp>

#include "support/program.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using test::Outcome;
using test::run_elastify;

TEST_SUITE("cli") {
  TEST_CASE("cli: a level sliced out of a packed file is the one exported, its adapter beside it or merged") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kAnchors, true, true,
                                     false);
    const test::TemporaryDirectory work;
    const std::string at = work.path().string(), model = at + "/packed/model.gguf";
    REQUIRE(
        run_elastify(fmt::format("export {} --type f32 -o {}/plain", made.reordered().string(), at)).status ==
        0);
    const Outcome packed = run_elastify(
        fmt::format("export {} --type f32 --packed -o {}/packed --json", made.reordered().string(), at));
    CAPTURE(packed.err);
    REQUIRE(packed.status == 0);
    CHECK(nlohmann::json::parse(packed.out).at("packed").at("name") == "model.gguf");

    const Outcome sliced =
        run_elastify(fmt::format("slice {} --level 0.6 -o {}/out/x.gguf --json", model, at));
    CAPTURE(sliced.err);
    REQUIRE(sliced.status == 0);
    CHECK((read_text(work / "out/x.gguf") == read_text(work / "plain/level-060.gguf")));
    CHECK((read_text(work / "out/lora-060.gguf") == read_text(work / "plain/lora-060.gguf")));
    CHECK(nlohmann::json::parse(sliced.out).at("beside").size() == 1);
    REQUIRE(run_elastify(fmt::format("slice {}/packed --level 1 -o {}/full.gguf", at, at)).status == 0);
    CHECK((read_text(work / "full.gguf") == read_text(work / "plain/full.gguf")));
    REQUIRE(run_elastify(fmt::format("slice {} --level 0.6 --merge-adapter -o {}/merged.gguf", model, at))
                .status == 0);
    CHECK_FALSE(fs::exists(work / "lora-060.gguf"));
    CHECK(fs::exists(work / "merged.gguf"));

    CHECK(run_elastify(fmt::format("slice {} --level 0.6 -o {}/out/x.gguf", model, at)).status == 2);
    CHECK(run_elastify(fmt::format("slice {} --level 0.6 -o {}/out/x.gguf --force", model, at)).status == 0);
    const Outcome unknown = run_elastify(fmt::format("slice {} --level 0.5 -o {}/y.gguf", model, at));
    CHECK(unknown.status == 2);
    CHECK(unknown.err.find("it holds 0.6, 0.8, 1") != std::string::npos);
    const Outcome plain =
        run_elastify(fmt::format("slice {}/plain/full.gguf --level 0.6 -o {}/y.gguf", at, at));
    CHECK(plain.status == 1);
    CHECK(plain.err.find("write one with `elastify export --packed`") != std::string::npos);

    const Outcome proof =
        run_elastify(fmt::format("verify {}/packed --against {}", at, made.model().string()));
    CHECK_MESSAGE(proof.status == 0, proof.out);
    for (const std::string& path : {model, at + "/packed"}) {
      const Outcome inspected = run_elastify(fmt::format("inspect {} --json", path));
      CAPTURE(inspected.err);
      REQUIRE(inspected.status == 0);
      CHECK(nlohmann::json::parse(inspected.out).at("levels").size() == 3);
    }
  }

  TEST_CASE("cli: packed and shared-common exclude each other") {
    const test::TemporaryDirectory work;
    const Outcome both =
        run_elastify(fmt::format("export {0} --packed --shared-common -o {0}/x", work.path().string()));
    CHECK(both.status == 2);
    CHECK(both.err.find("excludes") != std::string::npos);
  }
}

}  // namespace
}  // namespace elastify
