// Tests every option of every stage in all the ways in which users can set it.

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "pipeline/config.h"
#include "pipeline/presets.h"
#include "pipeline/stages.h"
#include "support/errors.h"
#include "support/program.h"
#include "support/temporary_directory.h"

namespace elastify {
namespace {

using nlohmann::ordered_json;
using options::Option;
using pipeline::RunConfig;

/// The help of a command, which runs only once.
const std::string& help_of(const std::string& verb) {
  static std::map<std::string, std::string> known;
  std::string& text = known[verb];
  if (text.empty()) text = test::run_elastify(verb + " --help").out;
  return text;
}

std::string flag_of(const Option& option) {
  const std::string flags = option.flags();
  return flags.substr(0, flags.find(','));
}

/// A value out of the option's range; none if all numbers are in range or the option is not a number.
std::optional<std::string> out_of_range(const Option& option) {
  const options::Range& range = option.range();
  if (std::isfinite(range.low))
    return option.type() == "INT" ? fmt::format("{:.0f}", range.low - 1) : fmt::format("{}", range.low - 1);
  return std::nullopt;
}

struct Reader {
  test::TemporaryDirectory directory;
  RunConfig read(const std::string& more, const std::vector<std::string>& overrides = {}) const {
    const fs::path file = directory.path() / "run.yaml";
    write_text(file, "model: m\noutput: out\n" + more);
    return pipeline::load_config(file, overrides);
  }
};

TEST_SUITE("cli") {
  TEST_CASE("options: each is a flag with help, a key in YAML and of --set, and a field in JSON") {
    const Reader reader;
    const std::string eval = "eval: {data: held.txt}\n";
    RunConfig config;
    options::Options list;
    declare(list, config);
    const ordered_json resolved = to_json(reader.read(eval));
    CHECK(list.all().size() > 40);
    for (const Option& option : list.all()) {
      CAPTURE(option.key());
      CHECK_FALSE(option.help().empty());
      // The stage's command has the flag; the whole run's are common to all commands, or arguments of `run`.
      const bool is_argument = option.key() == "model" || option.key() == "output";
      const std::string verb = !option.section().empty()  ? option.section()
                               : option.key() == "preset" ? "run"
                                                          : "profile";
      if (!is_argument) {
        CHECK(help_of(verb).find(flag_of(option)) != std::string::npos);
      }
      const ordered_json& section = option.section().empty() ? resolved : resolved.at(option.section());
      REQUIRE(section.contains(option.name()));
      const ordered_json& value = section.at(option.name());
      if (value.is_null()) continue;
      // Setting the resolved value with --set changes nothing.
      const RunConfig again = reader.read(eval, {fmt::format("{}={}", option.key(), value.dump())});
      CHECK(value_of(again, option.key()) == value);
    }
  }

  TEST_CASE("options: a number out of range is refused by the flag, in YAML and by --set in the same words") {
    const Reader reader;
    RunConfig config;
    options::Options list;
    declare(list, config);
    int n = 0;
    for (const Option& option : list.all()) {
      const auto word = out_of_range(option);
      if (!word || option.section().empty()) continue;
      CAPTURE(option.key());
      const std::string expected = fmt::format("expected {}, got {}", option.range().text(), *word);
      const std::string yaml = option.section() == "eval"
                                   ? fmt::format("eval: {{data: held.txt, {}: {}}}\n", option.name(), *word)
                                   : fmt::format("eval: {{data: held.txt}}\n{}: {{{}: {}}}\n",
                                                 option.section(), option.name(), *word);
      CHECK(test::message_of([&] { reader.read(yaml); }).find(expected) != std::string::npos);
      const std::string set = fmt::format("{}={}", option.key(), *word);
      CHECK(test::message_of([&] { reader.read("eval: {data: held.txt}\n", {set}); }).find(expected) !=
            std::string::npos);
      const test::Outcome flagged = test::run_elastify(
          fmt::format("{} {}={} /nowhere -o /tmp/never", option.section(), flag_of(option), *word));
      CHECK(flagged.status == 2);
      CHECK(flagged.err.find(expected) != std::string::npos);
      ++n;
    }
    CHECK(n > 15);
  }

  TEST_CASE("options: docs/options.md is what `elastify options --markdown` prints") {
    const test::Outcome listed = test::run_elastify("options --markdown");
    CHECK(listed.status == 0);
    CHECK(listed.out == read_text(fs::path(ELASTIFY_SOURCE_DIR) / "docs/options.md"));
  }

  TEST_CASE("options: a preset fills what was not given, and the resolved configuration says where from") {
    const Reader reader;
    const std::string common = "profile: {data: text.txt}\neval: {data: held.txt}\n";
    for (const pipeline::Preset& preset : pipeline::presets()) {
      CAPTURE(preset.name);
      const RunConfig config = reader.read(common, {fmt::format("preset={}", preset.name)});
      for (const auto& [key, value] : preset.values) {
        if (value == pipeline::kEighthOfWidth) continue;
        CAPTURE(key);
        CHECK(options::text_of(value_of(config, std::string(key))) == value);
        CHECK(config.sources.at(std::string(key)) == fmt::format("preset {}", preset.name));
      }
    }
    const RunConfig own = reader.read(common, {"preset=paper", "reorder.metric=wanda"});
    CHECK(own.reorder.metric == Metric::kWanda);
    CHECK(own.sources.at("reorder.metric") == "--set reorder.metric=wanda");
    CHECK(own.reorder.plan.method == plan::Method::kAnchors);
    CHECK(to_yaml(own).find("# preset paper") != std::string::npos);
    CHECK(reader.read(common).preset == "balanced");
    CHECK(test::message_of([&] {
            reader.read(common, {"preset=super"});
          }).find("unknown preset 'super'; known are fast") != std::string::npos);
  }

  TEST_CASE(
      "options: every stage has a command of its name, a section or a parent's, and needs earlier ones") {
    std::vector<std::string> earlier;
    for (const pipeline::Stage& stage : pipeline::stages()) {
      CAPTURE(stage.name);
      CHECK(help_of(std::string(stage.name)).find(std::string(stage.summary)) != std::string::npos);
      for (const std::string_view needed : stage.needs)
        CHECK(std::find(earlier.begin(), earlier.end(), needed) != earlier.end());
      earlier.emplace_back(stage.name);
    }
  }
}

}  // namespace
}  // namespace elastify
