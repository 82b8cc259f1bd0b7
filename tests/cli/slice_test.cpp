// Tests the program on packed artifacts: export, slice, verify, inspect.

#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "export/packed.h"
#include "support/bytes.h"
#include "support/elastic_fixture.h"
#include "support/program.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using test::Outcome;
using test::run_elastify;

TEST_SUITE("cli") {
  TEST_CASE("cli: a level sliced out of a packed file is the one exported, its adapter beside it or merged") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kAnchors,
                                     {true, true, false});
    const test::TemporaryDirectory work;
    const std::string at = work.path().string(), model = at + "/packed/model.gguf";
    REQUIRE(
        run_elastify(fmt::format("export {} --type f32 -o {}/plain", made.reordered().string(), at)).status ==
        0);
    const Outcome packed = run_elastify(
        fmt::format("export {} --type f32 --packed -o {}/packed --json", made.reordered().string(), at));
    CAPTURE(packed.err);
    REQUIRE(packed.status == 0);
    CHECK(nlohmann::json::parse(packed.out).at("packed").at(0).at("name") == "model.gguf");

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

  TEST_CASE("cli: slice never writes over what it reads, and writes nothing where a part is damaged") {
    const test::RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform,
                                     {true, false, false});
    const test::TemporaryDirectory work;
    const std::string at = work.path().string();
    REQUIRE(
        run_elastify(fmt::format("export {} --type f32 --packed -o {}/packed", made.reordered().string(), at))
            .status == 0);
    const fs::path model = work / "packed/model.gguf";
    const std::string before = read_text(model);
    const Outcome itself = run_elastify(
        fmt::format("slice {}/packed --level 0.6 -o {}/packed/../packed/model.gguf --force", at, at));
    CHECK(itself.status == 2);
    CHECK(itself.err.find("is the input ") != std::string::npos);
    CHECK((read_text(model) == before));

    std::string damaged = before;
    {
      const auto file = exporter::PackedFile::open(model);
      const auto adapter = file.bytes_of(file.embedded().at(*file.level(0.8).adapter));
      damaged.at(static_cast<size_t>(&adapter.back() - file.model().file()->bytes().data()) - 40) ^= 1;
    }
    test::write_bytes(model, damaged);
    const Outcome refused =
        run_elastify(fmt::format("slice {} --level 0.8 -o {}/x.gguf", model.string(), at));
    CAPTURE(refused.err);
    CHECK(refused.status == 1);
    CHECK_FALSE(fs::exists(work / "x.gguf"));
  }

  TEST_CASE("cli: export reports what lies there, in every layout") {
    const test::ElasticFixture made(test::make_tiny_spec("llama"));
    for (const std::string layout : {"", "--packed", "--shared-common", "--type f32,f16 --shared-common"}) {
      CAPTURE(layout);
      const fs::path output = made.path() / "art";
      const Outcome exported = run_elastify(fmt::format("export {} {} --force --json -o {}",
                                                        made.reordered().string(), layout, output.string()));
      CAPTURE(exported.err);
      REQUIRE(exported.status == 0);
      const auto report = nlohmann::json::parse(exported.out);
      CHECK(report.at("files").size() == (layout.starts_with("--type") ? 6 : 3));
      for (const char* list : {"files", "packed", "common"})
        for (const auto& file : report.value(list, nlohmann::json::array())) {
          if (layout == "--packed" && std::string(list) == "files") continue;  // as sliced
          const fs::path path = output / file.at("name").get<std::string>();
          CAPTURE(path.string());
          REQUIRE(fs::exists(path));
          CHECK(file.at("bytes") == fs::file_size(path));
          CHECK(file.at("sha256") == sha256_file(path));
        }
      CHECK(report.contains("packed") == (layout == "--packed"));
      CHECK(report.contains("common") == (layout.find("common") != std::string::npos));
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
