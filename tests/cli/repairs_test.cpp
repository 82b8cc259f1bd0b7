// Tests the program with repairs: reorder, verify, export, eval.

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "support/program.h"
#include "support/shared_data.h"

namespace elastify {
namespace {

using test::Outcome;
using test::run_elastify;

struct Subject {
  test::TemporaryDirectory directory;
  std::string common = fmt::format("'{}' --tokenizer '{}'",
                                   (test::shared_data() / "models/stories260K/stories260K.bin").string(),
                                   (test::shared_data() / "models/stories260K/tok512.model").string());
  std::string text = (test::shared_data() / "datasets/tinystories/tinystories_v2gpt4_10k_lines.txt").string();
  std::string held =
      (test::shared_data() / "datasets/tinystories/tinystories_v1_valid_head_0.8MB.txt").string();

  std::string path(const std::string& name) const { return (directory / name).string(); }
  Outcome reorder(const std::string& options, const std::string& out) const {
    return run_elastify(
        fmt::format("reorder {} --preset none --levels 0.6 {} -o '{}' --json", common, options, path(out)));
  }
  nlohmann::json eval(const std::string& what, const std::string& options = "") const {
    const Outcome done = run_elastify(
        fmt::format("eval '{}' --data '{}' --tokens 1024 --seq 64 {} --json", path(what), held, options));
    CAPTURE(done.err);
    REQUIRE(done.status == 0);
    return nlohmann::json::parse(done.out);
  }
};

TEST_SUITE("cli") {
  TEST_CASE("cli: repairs go from reorder through verify and export to eval") {
    if (!test::has_shared_data()) return;
    const Subject subject;
    const std::string data = fmt::format("--data '{}' --tokens 4096 --seq 64", subject.text);
    const Outcome reordered = subject.reorder(data + " --compensate adapter+bias --rank 8", "out");
    CAPTURE(reordered.err);
    REQUIRE(reordered.status == 0);
    CHECK(nlohmann::json::parse(reordered.out).at("compensate") == "adapter+bias");
    const Outcome exported = run_elastify(fmt::format("export '{}' --type f32 --adapter-type f32 -o '{}'",
                                                      subject.path("out"), subject.path("art")));
    CAPTURE(exported.err);
    REQUIRE(exported.status == 0);
    CHECK(exported.out.find("lora-060.gguf") != std::string::npos);
    for (const char* made : {"out", "art"}) {
      const Outcome verified =
          run_elastify(fmt::format("verify '{}' --against {}", subject.path(made), subject.common));
      CAPTURE(verified.out);
      CHECK(verified.status == 0);
      CHECK(verified.out.find("repairs have the shapes of their levels") != std::string::npos);
    }
    const auto with = subject.eval("out", "--level 0.6"),
               without = subject.eval("out", "--level 0.6 --no-repairs");
    CHECK(with.at("repairs") == "adapter+bias");
    CHECK(without.at("repairs") == "none");
    CHECK(with.at("perplexity").get<double>() < without.at("perplexity").get<double>());
    const auto artifact = subject.eval("art", "--level 0.6"),
               biases_alone = subject.eval("art", "--level 0.6 --no-repairs");
    CHECK(artifact.at("repairs") == "adapter+bias");
    CHECK(biases_alone.at("repairs") == "bias");
    CHECK(artifact.at("perplexity").get<double>() ==
          doctest::Approx(with.at("perplexity").get<double>()).epsilon(1e-5));
    CHECK(biases_alone.at("perplexity").get<double>() > artifact.at("perplexity").get<double>());
    CHECK(subject.eval("out").at("repairs") == "none");
    CHECK(subject.eval("art").at("repairs") == "none");

    const auto file = subject.eval("art/level-060.gguf");
    CHECK(file.at("level") == 0.6);
    CHECK(file.at("true_ratio").get<double>() == doctest::Approx(artifact.at("true_ratio").get<double>()));
    CHECK(file.at("repairs") == "bias");
    CHECK(file.at("perplexity") == biases_alone.at("perplexity"));
    const Outcome other = run_elastify(fmt::format("eval '{}' --level 0.3 --data '{}' --json",
                                                   subject.path("art/level-060.gguf"), subject.held));
    CHECK(other.status == 2);
    CHECK(nlohmann::json::parse(other.out).at("error").get<std::string>().find("holds level 0.6, not 0.3") !=
          std::string::npos);

    fs::remove(subject.path("art/lora-060.gguf"));
    const Outcome lost = run_elastify(fmt::format("eval '{}' --level 0.6 --data '{}' --tokens 1024 --seq 64",
                                                  subject.path("art"), subject.held));
    CHECK(lost.status == 1);
    CHECK(lost.err.find("lora-060.gguf: missing, but manifest.json lists it for level 0.6") !=
          std::string::npos);
  }

  TEST_CASE("cli: repairs beside a profile need text, and a profile beside text needs repairs") {
    if (!test::has_shared_data()) return;
    const Subject subject;
    const std::string data = fmt::format("--data '{}' --tokens 1024 --seq 64", subject.text);
    REQUIRE(run_elastify(fmt::format("profile {} {} --removal-tokens 0 -o '{}'", subject.common, data,
                                     subject.path("p.h5")))
                .status == 0);
    const std::string profile = fmt::format("--profile '{}'", subject.path("p.h5"));
    const Outcome no_text = subject.reorder(profile + " --compensate bias", "a");
    CHECK(no_text.status == 2);
    CHECK(no_text.err.find("--compensate fits on text") != std::string::npos);
    const Outcome no_repairs = subject.reorder(profile + " " + data, "a");
    CHECK(no_repairs.status == 2);
    CHECK(no_repairs.err.find("--profile") != std::string::npos);
    CHECK(subject.reorder(profile + " --compensate magic " + data, "a")
              .err.find("unknown compensation 'magic'") != std::string::npos);
    CHECK_FALSE(fs::exists(subject.path("a")));
    const Outcome both = subject.reorder(profile + " " + data + " --compensate bias", "a");
    CAPTURE(both.err);
    CHECK(both.status == 0);
    CHECK(fs::exists(subject.directory / "a/repairs/level-060/weights.safetensors"));
    CHECK_FALSE(fs::exists(subject.directory / "a/repairs/level-060/adapter_config.json"));
  }

  TEST_CASE("cli: repairs take as much of the text as they are given, and say when it is little") {
    if (!test::has_shared_data()) return;
    const Subject subject;
    const std::string data =
        fmt::format("--data '{}' --seq 64 --metric random --compensate baked", subject.text);
    const std::string weights = "repairs/level-060/weights.safetensors";
    for (const char* given : {"--tokens 1024", "--tokens 512", "--tokens 1024 --fit-tokens 512"}) {
      const Outcome made = subject.reorder(data + " " + given, given);
      CAPTURE(made.err);
      REQUIRE(made.status == 0);
      const bool all = std::string(given) == "--tokens 1024";
      CHECK(made.err.find(fmt::format("fitted on {} tokens, {} for each of the 172 inputs", all ? 1024 : 512,
                                      all ? 5 : 2)) != std::string::npos);
    }
    const auto made = [&](const std::string& given) {
      return read_text(subject.directory / given / weights);
    };
    CHECK((made("--tokens 1024 --fit-tokens 512") == made("--tokens 512")));
    CHECK((made("--tokens 1024 --fit-tokens 512") != made("--tokens 1024")));
  }
}

}  // namespace
}  // namespace elastify
